import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.errors import OutputExistsError, QuantkitError
from quantkit.files import leftovers, new_file, new_folder, read_json, write_json


def test_a_folder_appears_when_complete_and_only_then(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    with new_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "result") as partial:
        (partial / "a").write_text("1")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "file") as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_survives_a_failed_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").write_text("kept")
    with pytest.raises(OutputExistsError, match="--overwrite"), new_folder(target):
        raise AssertionError("the block must not run")
    with pytest.raises(ZeroDivisionError), new_folder(target, overwrite=True):
        raise ZeroDivisionError
    assert (target / "old").read_text() == "kept"
    with new_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("1")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


WRITER = """
import sys, time
from pathlib import Path
from quantkit.files import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as partial:
    (partial / "half").write_text("1")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path: Path) -> None:
    target = tmp_path / "result"
    command = [sys.executable, "-c", WRITER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with new_folder(target):
            pass
        assert len(leftovers(target)) == 1  # the other's, who is at it still
        other.kill()
    assert len(leftovers(target)) == 1
    with new_folder(target, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_result_that_a_kill_left_half_renamed_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "result"
    retired = tmp_path / ".result.partial-abc.old"
    retired.mkdir()
    (retired / "old").write_text("kept")
    with pytest.raises(OutputExistsError), new_folder(target):
        raise AssertionError("the block must not run")
    assert (target / "old").read_text() == "kept"


def test_others_may_read_what_was_made(tmp_path: Path) -> None:
    with new_folder(tmp_path / "result") as partial:
        secret = partial / "a"
        secret.write_text("1")
        secret.chmod(0o600)
    usual = tmp_path / "usual"
    usual.write_text("1")
    assert (tmp_path / "result" / "a").stat().st_mode == usual.stat().st_mode


def test_json_goes_there_and_back_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"kata": "énak", "n": 1})
    assert read_json(path) == {"kata": "énak", "n": 1}
    path.write_text("{")
    with pytest.raises(QuantkitError, match="is not JSON"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(QuantkitError, match="holds a list"):
        read_json(path)
    with pytest.raises(QuantkitError, match="no such file"):
        read_json(tmp_path / "nothing.json")
