"""The benchmark of a training step, with a tiny model: what it measures and writes."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import qat_overhead  # noqa: E402
from bert_sizes import Sizes  # noqa: E402

SIZES = Sizes(layers=1, hidden=64, heads=2, intermediate=128, vocab=100)
MODEL = ["--layers", "1", "--hidden", "64", "--heads", "2", "--intermediate", "128"]


def _here(name: str, shape: str, options: argparse.Namespace, start: Path) -> dict[str, float]:
    return qat_overhead.worker(name, shape, SIZES, start, options.threads)


def test_every_candidate_trains_and_the_report_holds_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat_overhead, "STEPS", {"8x64": 1, "smsa": 1})
    arguments = [*MODEL, "--vocab", "100", "--rounds", "1", "--threads", "1"]
    with monkeypatch.context() as patched:
        # A process for each of 14 turns would take minutes; the next test starts one.
        patched.setattr(qat_overhead, "_measured", _here)
        assert qat_overhead.main([*arguments, "--results", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "qat_overhead.json").read_text(encoding="utf-8"))
    for shape in qat_overhead.SHAPES:
        medians = report["results"]["shapes"][shape]["median_ms"]
        assert tuple(medians) == qat_overhead.CANDIDATES
        assert min(medians.values()) > 0.0
    # Four candidates against float at two shapes, and those of 8 bits against the peer.
    assert len(report["bars"]) == 2 * (4 + 2)
    limits = {bar["name"]: bar["limit"] for bar in report["bars"]}
    assert limits["w8a8-fixed/float at 8x64"] == 1.15
    assert limits["w4a8-learned/float at smsa"] == 1.25
    assert limits["w8a8-learned/peer at smsa"] == 1.0


def test_a_turn_is_a_process(tmp_path: Path) -> None:
    options = argparse.Namespace(threads=1, layers=1, hidden=64, heads=2, intermediate=128, vocab=9)
    found = qat_overhead._measured("float", "8x64", options, tmp_path)
    assert found["ms"] > 0.0
    assert found["bytes"] > 0.0


def test_lengths_are_those_of_smsa_with_like_ones_together() -> None:
    batches = list(qat_overhead._batches("smsa", 50))
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    assert bool((lengths[1:] >= lengths[:-1]).all())
    assert 30 < float(lengths.float().mean()) < 46  # 37.8 in the training texts
    assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in batches)


def test_few_rounds_prove_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        qat_overhead.main(["--check", "--rounds", "4"])
    assert "--check needs at least 5 rounds, not 4" in capsys.readouterr().err
