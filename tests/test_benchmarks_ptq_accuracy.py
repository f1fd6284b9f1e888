"""`benchmarks/ptq_accuracy.py`: a tiny unit, peers that fail, and the bars by hand."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import ptq_accuracy
import units

from tests.cli import checkpoint, write_nergrit


def entry(score: float, change: float, equal: float) -> dict[str, Any]:
    """A method's scores, all in percent."""
    value = {"value": score / 100}
    return {"macro_f1": value, "change": {"value": change / 100}, "agreement": equal / 100}


def unit(task: str, **methods: dict[str, Any]) -> dict[str, Any]:
    """A unit's JSON; of names, `_` stands for a blank."""
    scores = {name.replace("_", " "): found for name, found in methods.items()}
    return {"task": task, "seed": 0, "main": "macro_f1", "test_rows": 100, "scores": scores}


SMSA = unit(
    "smsa",
    float={"macro_f1": {"value": 0.8}, "bytes": 4_000_000},
    w8a8=entry(79.9, -0.1, 99.0) | {"bytes": 1_000_000},
    w4a8=entry(79.0, -1.0, 96.0),
    w4a16=entry(79.5, -0.5, 98.0),
    onnxruntime_dynamic_int8=entry(80.3, 0.3, 98.5),
    NNCF_int8={"failed": {"nncf-int8": "no message"}},
)
TERMA = unit(
    "terma",
    float={"macro_f1": {"value": 0.8}, "bytes": 2_000_000},
    w8a8=entry(79.5, -0.5, 98.0),
    w4a8=entry(76.0, -4.0, 95.0),
    w4a16=entry(78.5, -1.5, 98.0),
    NNCF_int8=entry(79.0, -1.0, 98.5),
)


def test_bars_are_means_over_units_and_a_rival_is_met_where_it_has_a_result() -> None:
    bars = {bar.name: bar for bar in ptq_accuracy.bars([SMSA, TERMA])}
    values = {name: (round(bar.value, 6), bar.holds) for name, bar in bars.items()}
    lead = values.pop("w4a16: lead in labels equal")
    score = values.pop("w4a16: best rival's lead in score")
    assert math.isnan(lead[0])
    assert not lead[1]
    assert math.isnan(score[0])
    assert values == {
        "W8A8: drop": (0.3, True),
        "W8A8: labels equal": (98.5, False),
        "W4A8: drop": (2.5, False),
        "W4A8: drop, labelling": (4.0, False),
        "W4A8: labels equal": (95.5, False),
        "W4A16: drop": (1.0, False),
        "W4A16: labels equal": (98.0, True),
        # On SmSA onnxruntime is 0.4 ahead and 0.5 less equal; on TermA NNCF 0.5 behind, 0.5 more.
        "w8a8: best rival's lead in score": (0.4, False),
        "w8a8: lead in labels equal": (-0.5, False),
    }


def test_means_leave_out_what_is_not_there() -> None:
    both = [SMSA, TERMA]
    assert units.means(both, "float") == units.Means(80.0, 0.0, 100.0, 3.0, 2)
    assert units.means(both, "w8a8").megabytes == 1.0
    nothing = units.means(both, "w4a4")
    assert nothing.units == 0
    assert json.dumps(nothing.to_json()).count("null") == 4
    header, rows = units.by_task(both, ["w8a8"])
    assert header == ["method", "smsa", "terma"]
    assert rows == [["w8a8", "-0.10 / 99.00", "-0.50 / 98.00"]]
    (row,) = units.cells({"w4a8": units.means(both, "w4a8")})
    assert row == ["w4a8", "77.50", "-2.50", "95.50", "", "2"]


def test_a_unit_has_every_setting_and_says_which_peer_failed(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: ptq_accuracy.OWN[name] for name in ("naive w8a8, all activations", "w4a16")}
    monkeypatch.setattr(ptq_accuracy, "OWN", own)
    monkeypatch.setattr(ptq_accuracy, "PEERS", {"a tool": ("no-such-method",)})
    monkeypatch.setattr(ptq_accuracy, "bars", lambda _: [])
    places = {"model": checkpoint(base), "data": write_nergrit(tmp_path / "data")}
    places |= {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    arguments = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    arguments += ["--task", "nergrit", "--seed", "1"]
    assert ptq_accuracy.main(arguments) == 0
    file = tmp_path / "results" / "ptq_accuracy_nergrit_1.json"
    found = json.loads(file.read_text())
    assert found["recipe"]["model"] == checkpoint(base).name  # no path of the machine
    assert list(found["scores"]) == ["float", *own, "a tool"]
    simulated, four = (found["scores"][name] for name in own)
    assert simulated["bytes"] is None
    assert four["bytes"] < found["scores"]["float"]["bytes"] / 2
    assert 0 <= four["agreement"] <= 1
    assert "no-such-method" in found["scores"]["a tool"]["failed"]["no-such-method"]
    assert "by task" in capsys.readouterr().out
    written = file.stat().st_mtime_ns
    assert ptq_accuracy.main(arguments) == 0
    assert file.stat().st_mtime_ns == written


def test_no_unit_no_summary(tmp_path: Path) -> None:
    assert ptq_accuracy.main(["--summary", "--results", str(tmp_path)]) == 1
