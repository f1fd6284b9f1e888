"""What one step of quantization-aware training costs beside a float step, in time and memory.

    python benchmarks/qat_overhead.py --check

BERT-base with random weights; a step is forward, backward and AdamW, without a teacher:

    float         as it is
    peer          torch.ao.quantization's FakeQuantize at the input of every Linear of the encoder,
                  one per channel for its weight, moving-average observers on; embeddings in float
    peer-frozen   the same with the observers off, as in the last part of a run
    w8a8-fixed    quantkit's modules, ranges as PTQ chose them; embeddings quantized too
    w8a8-learned  the same, scales and zero points learnt
    w4a8-fixed, w4a8-learned    two-level 4-bit weights and words

Each turn is a process of its own and rounds are interleaved; a ratio is taken within each round.
`smsa` are batches of 32 texts as long as SmSA's, like ones together, as quantkit trains them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bert_sizes import Sizes, random_model
from harness import RESULTS, Bar, finish, ratio_interval, table
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    disable_observer,
)
from transformers import PreTrainedModel

from quantkit.memory import keeping_freed_memory, resident_bytes
from quantkit.ptq import quantize
from quantkit.qat import Fixed, Lsq, parameter_groups, prepare, set_progress
from quantkit.recipe import Recipe, with_bits, with_changes
from quantkit.runtime import available_threads

CANDIDATES = (
    "float",
    "peer",
    "peer-frozen",
    "w8a8-fixed",
    "w8a8-learned",
    "w4a8-fixed",
    "w4a8-learned",
)
SHAPES = ("8x64", "smsa")
PEERS = ("peer", "peer-frozen")
# Tokens of SmSA's training texts with IndoBERT's tokenizer, at every twentieth quantile.
QUANTILES = (*(3, 8, 11, 14, 16, 19, 22, 25, 27, 30, 33, 36, 40, 44, 49, 54, 60, 67, 73, 79, 132),)
WARM, STEPS = 1, {"8x64": 4, "smsa": 3}  # untimed and timed steps
ROUNDS = 5  # by default, and at least for a check
STEPS_OF_A_RUN = 1000  # that set_progress is told

Batch = dict[str, Tensor]


def worker(name: str, shape: str, sizes: Sizes, start: Path, threads: int) -> dict[str, float]:
    """Milliseconds of a step, and how many bytes the process grew to while it trained."""
    torch.set_num_threads(threads)
    imported = resident_bytes()
    model = _model(sizes)
    begin = _candidate(name, model, start)
    del model
    trained, progress = begin
    trained.train()
    groups = parameter_groups(trained, lr=2e-5, weight_decay=0.01, scale_lr=1e-3)
    optimizer = torch.optim.AdamW(groups)
    batches = list(_batches(shape, sizes.vocab))
    seconds = 0.0
    with keeping_freed_memory():  # every candidate, as quantkit trains
        for step, batch in enumerate([*batches[:1] * WARM, *batches]):
            began = time.perf_counter()
            progress(step)
            trained(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step >= WARM:
                seconds += time.perf_counter() - began
    return {
        "ms": 1e3 * seconds / len(batches),
        "bytes": float(resident_bytes(peak=True) - imported),
    }


def _model(sizes: Sizes) -> PreTrainedModel:
    return random_model(sizes, positions=max(QUANTILES))


def _batches(shape: str, vocab: int) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    if shape == "8x64":
        lengths = np.full((STEPS[shape], 8), 64)
    else:
        places = rng.random(STEPS[shape] * 32)
        drawn = np.interp(places, np.linspace(0, 1, len(QUANTILES)), QUANTILES).astype(int)
        lengths = np.sort(drawn).reshape(STEPS[shape], 32)
    for row in lengths:
        ids = torch.from_numpy(rng.integers(5, vocab, (len(row), row.max())))
        mask = torch.from_numpy((np.arange(row.max()) < row[:, None]).astype(np.int64))
        labels = torch.from_numpy(rng.integers(0, 3, len(row)))
        yield {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


# --- candidates ----------------------------------------------------------------------


def _candidate(name: str, model: PreTrainedModel, start: Path) -> tuple[Any, Callable[[int], None]]:
    """A model to train, and what is to be told each step."""
    if name == "float":
        return model, lambda _: None
    if name in PEERS:
        _fake_quantize(model)
        if name == "peer-frozen":
            with torch.no_grad():
                for batch in list(_batches("8x64", model.config.vocab_size))[:2]:
                    model(**batch)
            model.apply(disable_observer)
        return model, lambda _: None
    bits, _, ranges = name.partition("-")
    quantized = torch.load(start / f"{bits}.pt", weights_only=False)
    trained = prepare(model, quantized, Lsq() if ranges == "learned" else Fixed())
    return trained, lambda step: set_progress(trained, step, STEPS_OF_A_RUN)


class _PeerLinear(nn.Module):
    """A Linear between torch's own fake-quantize modules."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.of_input = FakeQuantize(  # type: ignore[no-untyped-call]
            MovingAverageMinMaxObserver, 0, 255, dtype=torch.quint8, reduce_range=False
        )
        self.of_weight = FakeQuantize(  # type: ignore[no-untyped-call]
            MovingAveragePerChannelMinMaxObserver,
            -127,
            127,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            reduce_range=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.of_weight(self.linear.weight)
        return nn.functional.linear(self.of_input(x), weight, self.linear.bias)


def _fake_quantize(model: PreTrainedModel) -> None:
    for name, module in list(model.base_model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.base_model.get_submodule(parent), child, _PeerLinear(module))


def _quantized(folder: Path, sizes: Sizes) -> None:
    """What training starts from, at 8 and at 4 bits, smoothed as by default."""
    plain = Recipe(name="overhead", task="none", model="none")
    for bits in (8, 4):
        fast = {"rounding": {"name": "nearest"}}  # GPTQ would change no step
        recipe = with_changes(with_bits(plain, bits), fast)
        batches = list(_batches("8x64", sizes.vocab))[:2]
        torch.save(quantize(_model(sizes), batches, recipe=recipe), folder / f"w{bits}a8.pt")


# --- measuring -----------------------------------------------------------------------


def _measured(name: str, shape: str, options: argparse.Namespace, start: Path) -> dict[str, float]:
    """`worker` in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--shape", shape]
    command += ["--start", str(start), "--threads", str(options.threads)]
    for size in asdict(Sizes()):
        command += [f"--{size}", str(getattr(options, size))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


Found = dict[str, dict[str, list[dict[str, float]]]]  # shape -> candidate -> a turn per round


def _bars(found: Found) -> list[Bar]:
    bars = []
    for shape, turns in found.items():
        for name in CANDIDATES:
            bits, _, ranges = name.partition("-")
            if ranges not in ("fixed", "learned"):
                continue
            limit = {"fixed": 1.15, "learned": 1.25}[ranges]
            bars.append(_bar(f"{name}/float at {shape}", turns, name, "float", limit))
            if bits == "w8a8":
                # Observers are what a peer learns ranges with.
                peer = "peer-frozen" if ranges == "fixed" else "peer"
                bars.append(_bar(f"{name}/{peer} at {shape}", turns, name, peer, 1.0))
    return bars


def _bar(
    label: str, turns: Mapping[str, list[dict[str, float]]], a: str, b: str, limit: float
) -> Bar:
    ours, theirs = ([turn["ms"] for turn in turns[name]] for name in (a, b))
    value, low, high = ratio_interval(ours, theirs)
    return Bar(label, value, limit, "at most", (low, high))


def _shape_result(turns: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    return {
        "round_ms": {name: [turn["ms"] for turn in each] for name, each in turns.items()},
        "median_ms": {name: _median(each, "ms") for name, each in turns.items()},
        "peak_mb": {name: _median(each, "bytes") / 1e6 for name, each in turns.items()},
        "ratio_to_float": {
            name: ratio_interval(
                [turn["ms"] for turn in each], [turn["ms"] for turn in turns["float"]]
            )
            for name, each in turns.items()
        },
    }


def _median(turns: Sequence[Mapping[str, float]], key: str) -> float:
    return float(np.median([turn[key] for turn in turns]))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    sizes = Sizes(*(getattr(options, size) for size in asdict(Sizes())))
    if options.worker is not None:
        found = worker(options.worker, options.shape, sizes, options.start, options.threads)
        print(json.dumps(found))
        return 0
    measured: Found = {shape: {name: [] for name in CANDIDATES} for shape in SHAPES}
    with tempfile.TemporaryDirectory() as folder:
        _quantized(Path(folder), sizes)
        for _ in range(options.rounds):
            for shape, turns in measured.items():
                for name, done in turns.items():
                    done.append(_measured(name, shape, options, Path(folder)))
    shapes = {shape: _shape_result(turns) for shape, turns in measured.items()}
    for shape, values in shapes.items():
        rows = [
            [
                name,
                *(f"{values[key][name]:.0f}" for key in ("median_ms", "peak_mb")),
                f"{values['ratio_to_float'][name][0]:.3f}",
            ]
            for name in CANDIDATES
        ]
        print("\n" + table([shape, "ms a step", "peak, MB", "/ float"], rows))
    results = {"model": asdict(sizes), "rounds": options.rounds, "shapes": shapes}
    return finish(
        "qat_overhead",
        _bars(measured),
        results,
        check=options.check,
        folder=options.results,
        threads=options.threads,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--rounds", type=int, default=ROUNDS, help="interleaved rounds (%(default)s)")
    add("--threads", type=int, default=available_threads())
    add("--results", type=Path, default=RESULTS, help="for qat_overhead.json")
    add("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    add("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    add("--start", type=Path, help=argparse.SUPPRESS)
    for name, value in asdict(Sizes()).items():
        add(f"--{name}", type=int, default=value, help="of the model (%(default)s)")
    options = parser.parse_args(arguments)
    if options.check and options.rounds < ROUNDS:
        parser.error(f"--check needs at least {ROUNDS} rounds, not {options.rounds}")
    return options


if __name__ == "__main__":
    sys.exit(main())
