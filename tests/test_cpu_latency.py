"""The latency benchmark at toy size: its files, its rounds, its bars, and one whole run."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quantkit.errors import MeasurementError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import cpu_latency  # noqa: E402
import latency_files  # noqa: E402
from bert_sizes import operations  # noqa: E402
from latency_files import Environments, Sizes, make  # noqa: E402
from latency_tables import bars_of, family_result  # noqa: E402
from latency_texts import write_texts  # noqa: E402

TOY = Sizes(layers=1, hidden=64, heads=4, intermediate=128, vocab=100, rows=120)
SIZES = {"layers": 1, "hidden": 64, "heads": 4, "intermediate": 128, "vocab": 100, "rows": 120}
NAMES = ("float", "int8", "torch-bf16", "rate")
PLACES = ("1x16", "1x64", "1x128", "8x128", "32x64")


def test_few_rounds_are_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cpu_latency.main(["--work", str(tmp_path), "--check", "--rounds", "6"])
    assert "--check needs at least 7 rounds, not 6" in capsys.readouterr().err


def test_a_run_writes_what_it_measured_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    sizes = [text for name, value in SIZES.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-W", "error", "benchmarks/cpu_latency.py", *sizes]
    command += ["--work", str(work), "--results", str(results), "--threads", "1", "--texts", "4"]
    command += ["--families", "bert-base", "--rounds", "1", "--only", *NAMES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = _json(results / "cpu_latency.json")
    assert str(tmp_path) not in report["command"]
    found = report["results"]["families"]["bert-base"]
    assert tuple(found["median"]) == NAMES
    for name in NAMES[:-1]:
        assert tuple(found["median"][name]) == (*PLACES, "texts 1", "texts 32")
        assert min(found["median"][name].values()) > 0.0
        assert 0 < found["memory_bytes"][name] <= found["peak_bytes"][name]
    assert found["precision"]["torch-bf16"] == "bfloat16"
    assert found["logits_off"]["float"] == 0.0 < found["logits_off"]["int8"] < 0.2
    assert found["bytes"]["int8"] == (work / "bert-base" / "int8" / "model.onnx").stat().st_size
    assert found["floor"]["8x128"]["int8/floor"] > 0.0
    assert [bar["name"] for bar in report["bars"]] == ["bert-base memory: int8/float"]
    state = _json(work / "bert-base" / "rounds.json")
    assert len(state["rounds"]) == 1


def test_files_are_made_once_and_hold_their_smoothing(tmp_path: Path) -> None:
    folder = make("int8", TOY, tmp_path, Environments())
    written = (folder / "model.onnx").stat().st_mtime_ns
    assert make("int8", TOY, tmp_path, Environments()) == folder
    assert written == (folder / "model.onnx").stat().st_mtime_ns
    multipliers = latency_files.count_multipliers(onnx.load(folder / "model.onnx"))
    # Three of a layer's four inputs and the pooler's; the fourth is folded into the values.
    assert multipliers == 3 + 1


def test_a_file_without_multipliers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_files, "count_multipliers", lambda _: 0)
    with pytest.raises(MeasurementError, match="holds 0 smoothing multipliers"):
        make("int8", TOY, tmp_path, Environments())
    assert not (tmp_path / "int8").exists()


def test_operations_by_hand() -> None:
    # Of one token and one layer: 4 of 2x2, 2 of 2x3; attention over one token: 2 of 2.
    tiny = asdict(Sizes(layers=1, hidden=2, intermediate=3))
    assert operations(tiny, [1]) == 2 * (16 + 12 + 4)
    # BERT-base at 1 x 128: 11 layers of 1.86 G, and 0.31 G of keys and values in the last.
    assert operations(asdict(Sizes()), [128]) == pytest.approx(11 * 1.862e9 + 0.314e9, rel=0.001)


def test_bars_and_floors_by_hand() -> None:
    rounds = [{name: _places(ms) for name, ms in _MS.items()}] * 3
    result = family_result(_measured(rounds), Sizes())
    bars = {bar.name: bar for bar in bars_of({"bert-base": result})}
    assert bars["bert-base 1x16: int8/quantize_dynamic"].value == 0.5
    assert bars["bert-base 8x128: int8/quantize_dynamic"].holds
    assert not bars["bert-base 1x128: 4bit/int8"].holds
    assert bars["bert-base memory: int8/float"].value == 0.25
    floor = result["floor"]["1x128"]
    # The rate's product is 2 x 128 x 768 x 3072 operations in 1 ms.
    assert floor["rate"] == pytest.approx(2 * 128 * 768 * 3072 / 1e-3)
    assert floor["int8/floor"] == pytest.approx(10.0 / floor["ms"])


def test_texts_without_data_have_lengths_like_comments(tmp_path: Path) -> None:
    path = write_texts(tmp_path, None, None, 200)
    with np.load(path) as rows:
        lengths = np.diff(rows["offsets"])
    assert path.stem == "generated"
    assert len(lengths) == 200
    assert 20 < np.median(lengths) < 40 < lengths.max()


_MS = {"float": 40.0, "int8": 10.0, "4bit": 11.0, "rate": 1.0}
_MS |= {"quantize_dynamic": 20.0}


def _places(ms: float) -> dict[str, float]:
    return dict.fromkeys(PLACES, ms)


def _measured(rounds: list[dict[str, dict[str, float]]]) -> Mapping[str, Any]:
    about = {
        name: {
            "imports": 10,
            "single_peak": 50 if name == "int8" else 170,
            "peak": 500,
            "precision": "",
            "seconds": 1,
        }
        for name in _MS
    }
    return {
        "rounds": rounds,
        "about": {name: each | {"open_seconds": 0.1} for name, each in about.items()},
        "bytes": dict.fromkeys(_MS, 100),
        "logits": {},
        "texts": 4,
    }


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
