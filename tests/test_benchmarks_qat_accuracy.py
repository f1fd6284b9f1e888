"""`benchmarks/qat_accuracy.py`: a tiny unit, its ablation, and the bars by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import qat_accuracy
import units

from tests.cli import checkpoint, files_in, write_nergrit


def unit(task: str, drops: dict[str, float], beyond: float = 0.0) -> dict[str, Any]:
    """A unit's JSON whose trained variants have lost so many points."""
    test = {"file": 0.5, "model": 0.501}
    scores: dict[str, Any] = {
        f"{name}-qat": {
            "macro_f1": {"value": 0.6 - drop / 100},
            "change": {"value": -drop / 100},
            "agreement": 0.99,
            "training": {"test": test},
            "beyond_training": {"value": beyond, "low": beyond - 0.03, "high": beyond + 0.03},
        }
        for name, drop in drops.items()
    }
    return {"task": task, "main": "macro_f1", "scores": scores}


def test_bars_are_means_over_units() -> None:
    found = [
        unit("emot", {"w8a8": 0.1, "w4a8": 0.1, "w4a4": 1.0}, beyond=-0.02),
        unit("nergrit", {"w8a8": 0.5, "w4a8": 0.9, "w4a4": 2.0}, beyond=-0.02),
    ]
    bars = {bar.name: bar for bar in qat_accuracy.bars(found)}
    values = {name: (round(bar.value, 6), bar.holds) for name, bar in bars.items()}
    assert values == {
        "W8A8 QAT: drop": (0.3, False),
        # -2 points, give or take sqrt(3² + 3²) / 2 = 2.12: not significantly worse.
        "W8A8 QAT: against float trained on": (-2.0, True),
        "W4A8 QAT: drop": (0.5, False),
        "W4A8 QAT: drop, labelling": (0.9, False),
        "W4A4 QAT: drop": (1.5, True),
        "file against training loop": (0.1, True),
    }
    assert bars["W8A8 QAT: against float trained on"].interval == pytest.approx(
        (-4.1213, 0.1213), 1e-3
    )
    posp = qat_accuracy.bars([unit("posp", {"w8a8": 0.0, "w4a8": 0.0, "w4a4": 0.0})])
    assert (posp[-1].name, posp[-1].limit) == ("file against training loop, POSP", 0.1)


def test_a_unit_has_all_variants_and_what_it_read_is_left_alone(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        qat_accuracy, "VARIANTS", {"w8a8": (8, {}), "w4a4": (4, {"activations.bits": 4})}
    )
    data = write_nergrit(tmp_path / "data")
    places = {"model": checkpoint(base), "data": data, "runs": tmp_path / "runs"}
    places |= {"results": tmp_path / "results", "work": tmp_path / "work"}
    arguments = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    arguments += ["--task", "nergrit", "--seed", "1", "--epochs", "1"]
    monkeypatch.setattr(qat_accuracy, "bars", lambda _: [])
    assert qat_accuracy.main(arguments) == 0
    file = tmp_path / "results" / "qat_accuracy_nergrit_1.json"
    found = json.loads(file.read_text())
    assert found["recipe"]["model"] == checkpoint(base).name  # no path of the machine
    trained = [name for name in found["scores"] if name.endswith("-qat")]
    assert list(found["scores"]) == [
        "float",
        "float, trained on",
        "w8a8",
        "w8a8-qat",
        "w4a4",
        "w4a4-qat",
    ]
    for name in trained:
        entry = found["scores"][name]
        assert entry["training"]["settings"]["seed"] == 1
        assert entry["training"]["test"]["rows"] == 12
        assert {"value", "low", "high"} <= entry["beyond_training"].keys()
        assert entry["bytes"] < found["scores"]["float"]["bytes"]
    kept = {path.relative_to(tmp_path / "runs").parts[1] for path in files_in(tmp_path / "runs")}
    assert kept == {"float", "run.json"}
    assert files_in(tmp_path / "work") == []
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(qat_accuracy, "ABLATION", {"STE": qat_accuracy.ABLATION["STE"], "all": {}})
    assert qat_accuracy.main([*arguments, "--ablation"]) == 0
    assert file.stat().st_mtime_ns == written
    steps = json.loads((tmp_path / "results" / "qat_ablation_nergrit_1.json").read_text())
    assert list(steps["scores"]) == ["float", "w4a8", "STE", "all"]
    assert steps["scores"]["STE"]["training"]["settings"]["teacher"] == "none"
    assert "Ablation at W4A8" in capsys.readouterr().out


def test_only_units_that_are_there_are_summed_up(tmp_path: Path) -> None:
    assert units.finished("qat_accuracy", tmp_path) == []
    assert qat_accuracy.main(["--summary", "--results", str(tmp_path)]) == 1
