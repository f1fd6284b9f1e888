"""Tasks by their names."""

from pathlib import Path

import pytest

from quantkit.data import download as download_module
from quantkit.data import load_task, task_names
from quantkit.errors import DataError
from quantkit.source import Source


def test_names() -> None:
    names = task_names()
    assert len(set(names)) == len(names) == 1 + 12 + 13 + 3 + 1
    assert {"builtin", "smsa", "facqa", "nusax", "nusax-toba_batak", "ppkm-5000"} <= set(names)
    assert names[-1] == "custom"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("smas", None, r"unknown task 'smas'. Known tasks: builtin, emot.*Did you mean 'smsa'\?$"),
        ("NusaX-Balinese", None, r"Did you mean 'nusax-balinese'\?$"),
        ("xyzzy", None, r"unknown task 'xyzzy'. .*, custom\.$"),
        ("custom", Source(), r"custom is read from files: pass --data FOLDER. It is a table of"),
        ("ppkm", None, r"ppkm is read from files: pass --data FOLDER. Get INA_Tweets"),
        ("smsa", Source(), r"the slot `data` of a recipe describes the task custom, not smsa"),
    ],
)
def test_names_and_folders_that_cannot_be_used(
    name: str, source: Source | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_task(name, None, source)


@pytest.mark.parametrize("name", ["smsa", "nusax-english", "nusax"])
def test_public_tasks_are_downloaded_where_no_folder_is_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(download_module, "GITHUB", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"could not be fetched: .*pass --data FOLDER"):
        load_task(name, None)
