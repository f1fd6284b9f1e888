"""The other ways to write the graph, at toy size: all but the bounds give the same answers."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import cpu_alternatives  # noqa: E402
from latency_graphs import BOUNDS, GRAPHS  # noqa: E402

SIZES = {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 128, "vocab": 100, "rows": 120}
APPROXIMATE = ("dynamic ranges", "quantize_dynamic")  # another quantization


def test_alternatives_answer_alike_and_every_one_is_timed(tmp_path: Path) -> None:
    sizes = [text for name, size in SIZES.items() for text in (f"--{name}", str(size))]
    options = ["--work", tmp_path / "work", "--results", tmp_path, "--rounds", 1, "--repeats", 1]
    assert cpu_alternatives.main([*map(str, options), "--threads", "1", *sizes]) == 0
    found = json.loads((tmp_path / "cpu_alternatives.json").read_text())["results"]
    alternatives = found["alternatives"]
    assert set(GRAPHS) < set(alternatives)
    for name, result in alternatives.items():
        if name not in (*BOUNDS, *APPROXIMATE):
            assert result["logits_off"] <= 1e-6, name
        assert result["8x128"]["median_ms"] > 0
    assert len(found["table"]) == len(alternatives) + 2
