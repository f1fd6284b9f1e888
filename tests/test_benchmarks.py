"""The benchmarks' shared parts by hand-worked values, and one tiny run of each script."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantkit.errors import MeasurementError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from harness import Bar, finish, ratio_interval, table  # noqa: E402
from latency_worker import program  # noqa: E402

from quantkit.measure import open_worker  # noqa: E402

PROGRAM = program("onnx")


@pytest.fixture
def token_sum(tmp_path: Path) -> Path:
    """A file with one input, whose only output is the sum of a text's tokens that count."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=1),
        ],
        "sum",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("sum", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path / "sum.onnx"
    onnx.save_model(model, path)
    return path


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@pytest.mark.parametrize(
    ("value", "direction", "holds"),
    [
        (0.32, "at most", True),
        (0.33, "at most", True),
        (0.34, "at most", False),
        (0.32, "at least", False),
        (0.33, "at least", True),
        (0.34, "at least", True),
        (float("nan"), "at most", False),
        (float("nan"), "at least", False),
    ],
)
def test_bar_holds_up_to_and_including_its_limit(
    value: float, direction: Literal["at most", "at least"], holds: bool
) -> None:
    assert Bar("ratio", value, 0.33, direction).holds is holds


@pytest.mark.parametrize(
    ("interval", "direction", "holds"),
    [
        ((0.32, 0.40), "at most", True),
        ((0.34, 0.40), "at most", False),
        ((0.20, 0.34), "at least", True),
        ((0.20, 0.32), "at least", False),
    ],
)
def test_bar_with_an_interval_is_missed_only_beyond_doubt(
    interval: tuple[float, float], direction: Literal["at most", "at least"], holds: bool
) -> None:
    assert Bar("ratio", 0.35, 0.33, direction, interval).holds is holds


@pytest.mark.parametrize(
    ("check", "missed", "code"),
    [(True, True, 1), (True, False, 0), (False, True, 0), (False, False, 0)],
)
def test_only_a_missed_bar_under_check_fails(
    check: bool, missed: bool, code: int, tmp_path: Path
) -> None:
    bars = [Bar("good", 1.0, 2.0, "at most"), Bar("other", 3.0 if missed else 2.0, 2.0, "at most")]
    assert finish("b", bars, {}, check=check, folder=tmp_path) == code


def test_finish_writes_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/x.py", "--check", "--work", "/some/where/files", "--rounds", "9"]
    )
    bars = [
        Bar("speed of a", 0.25, 0.33, "at most", (0.2, 0.3)),
        Bar("share", 0.5, 0.9, "at least"),
        Bar("broken", float("nan"), 1.0, "at most"),
    ]
    folder = tmp_path / "new" / "results"
    assert finish("x", bars, {"ms": [1.5]}, check=True, folder=folder, threads=3) == 1
    assert [path.name for path in folder.iterdir()] == ["x.json"]
    report = _json(folder / "x.json")
    assert list(report) == ["benchmark", "command", "environment", "bars", "results"]
    assert report["benchmark"] == "x"
    assert report["command"] == "python benchmarks/x.py --check --work files --rounds 9"
    assert report["environment"]["threads"] == 3
    assert report["results"] == {"ms": [1.5]}
    assert report["bars"][0] == {
        "name": "speed of a",
        "value": 0.25,
        "interval": [0.2, 0.3],
        "direction": "at most",
        "limit": 0.33,
        "holds": True,
    }
    assert report["bars"][1]["interval"] is None
    assert report["bars"][2]["value"] is None  # JSON has no NaN
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "speed of a  0.25 [0.2, 0.3]  at most 0.33   holds",
        "share                   0.5  at least 0.9  missed",
        "broken                  nan     at most 1  missed",
    ]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ([str(ROOT / "benchmarks" / "x.py")], "python benchmarks/x.py"),
        (["x.py", "--work=/home/me/w"], "python x.py --work=w"),
        (["x.py", "--work", "../w"], "python x.py --work ../w"),
        (["x.py", "--title", "two words"], "python x.py --title 'two words'"),
    ],
)
def test_command_names_no_absolute_path(
    given: list[str], written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", given)
    finish("x", [], {}, check=False, folder=tmp_path)
    assert _json(tmp_path / "x.json")["command"] == written


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # Ratios 0.5, 1, 1.5. A resample of three has median 0.5 if two or three of it are 0.5:
    # 7 of 27 times, far more often than 2.5 %; likewise 1.5.
    assert ratio_interval([1.0, 4.0, 3.0], [2.0, 4.0, 2.0]) == (1.0, 0.5, 1.5)


def test_ratio_of_drifting_rounds_has_no_spread() -> None:
    # Both twice as slow from round to round, always 1 : 4.
    assert ratio_interval([1.0, 2.0, 4.0, 8.0], [4.0, 8.0, 16.0, 32.0]) == (0.25, 0.25, 0.25)


def test_ratio_interval_ignores_one_wild_round_of_nine() -> None:
    # A resample's median is the wild one's only if five of nine picks hit it: 0.1 %.
    b = [1.0] * 9
    assert ratio_interval([0.3] * 8 + [30.0], b) == (0.3, 0.3, 0.3)


def test_ratio_interval_is_seeded() -> None:
    a, b = list(np.linspace(1, 2, 12)), [1.0] * 12
    assert ratio_interval(a, b, seed=5) == ratio_interval(a, b, seed=5)
    value, low, high = ratio_interval(a, b)
    assert 1.0 < low < value < high < 2.0


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_ratio_interval_refuses_rounds_that_do_not_pair(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"round|zip"):
        ratio_interval(a, b)


def test_table_aligns_its_columns() -> None:
    assert table(["shape", "ms"], [["1x16", "2.50"], ["8x128", "310.00"]]) == (
        "shape      ms\n1x16     2.50\n8x128  310.00"
    )


def test_worker_feeds_the_inputs_that_the_file_has(token_sum: Path) -> None:
    with open_worker("sum", token_sum, 1, PROGRAM) as worker:
        logits = worker.ask(do="run", batch=2, length=4, rows=6)["logits"]
        seconds = worker.ask(do="time", batch=2, length=4, rows=6, repeats=5)["seconds"]
    # Below 6 the only token id is 5; the first text has 2 tokens that count, the second 4.
    assert logits == [[10], [20]]
    assert len(seconds) == 5
    assert min(seconds) > 0.0


def test_worker_reports_what_went_wrong(token_sum: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(MeasurementError, match=r"'absent' failed.*absent\.onnx"),
        open_worker("absent", tmp_path / "absent.onnx", 1, PROGRAM),
    ):
        pass
    with open_worker("sum", token_sum, 1, PROGRAM) as worker:
        with pytest.raises(MeasurementError, match="'sum' failed: ValueError"):
            worker.ask(do="run", batch=2, length=4, rows=0)
        assert worker.ask(do="run", batch=1, length=1, rows=6) == {"logits": [[5]]}


def test_worker_that_has_ended_is_an_error(token_sum: Path) -> None:
    with open_worker("sum", token_sum, 1, PROGRAM) as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(MeasurementError, match="'sum' failed: the process ended"):
            worker.ask(do="run", batch=1, length=1, rows=6)
