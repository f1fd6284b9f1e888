"""`benchmarks/ptq_nearness.py`: a tiny unit beside a real other tool, and the ratio by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import ptq_nearness

from tests.cli import checkpoint, write_nergrit

RIVAL = "onnxruntime dynamic int8"


def write_known(results: Path) -> None:
    """The part of ptq_accuracy's unit that is read: the rival's best variant."""
    results.mkdir()
    known = {"scores": {RIVAL: {"variant": "ort-dynamic"}}}
    (results / "ptq_accuracy_nergrit_1.json").write_text(json.dumps(known))


def test_a_unit_measures_both_on_the_same_model(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq_nearness, "PAIRS", {"w8a8": RIVAL})
    places = {"model": checkpoint(base), "data": write_nergrit(tmp_path / "data")}
    places |= {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    arguments = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    arguments += ["--task", "nergrit", "--seed", "1"]
    assert ptq_nearness.main(arguments) == 1  # ptq_accuracy.py goes first
    assert "goes first" in capsys.readouterr().out
    write_known(tmp_path / "results")
    assert ptq_nearness.main(arguments) == 0
    found = json.loads((tmp_path / "results" / "ptq_nearness_nergrit_1.json").read_text())["found"]
    assert list(found) == ["w8a8", RIVAL]
    assert found[RIVAL]["variant"] == "ort-dynamic"
    for each in found.values():
        assert each["divergence"] > 0
        assert 0 <= each["agreement"] <= 1


def unit(task: str, own: float, other: float) -> dict[str, Any]:
    """A unit's JSON, as far as it is summarized."""
    found = {"w8a8": {"divergence": own}, RIVAL: {"divergence": other}}
    return {"task": task, "seed": 0, "found": found}


def test_the_summary_is_the_median_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq_nearness, "PAIRS", {"w8a8": RIVAL})
    for task, own, other in (("smsa", 1.0, 2.0), ("emot", 3.0, 2.0), ("terma", 4.0, 5.0)):
        file = tmp_path / f"ptq_nearness_{task}_0.json"
        file.write_text(json.dumps(unit(task, own, other)))
    assert ptq_nearness.main(["--summary", "--check", "--results", str(tmp_path)]) == 0
    (bar,) = json.loads((tmp_path / "ptq_nearness.json").read_text())["bars"]
    assert bar["value"] == pytest.approx(0.8)
    assert bar["interval"] == pytest.approx([0.5, 1.5])
    assert bar["holds"]
