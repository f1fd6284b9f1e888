"""What training takes on a GPU: memory against the published formula, and what QAT adds to a step.

    python benchmarks/cuda_training.py
    python benchmarks/cuda_training.py --toy --device cpu --results FOLDER

An IndoBERT-base-sized model with random weights and random tokens, which is enough for time and
memory: bf16 fine-tuning, and QAT at 8 and 4 bits in bf16. Each kind of step has a process of its
own. Of a step's time the host's is that of starting all kernels, whatever they take then: where it
is the longer one, a GPU waits for it. The formula is `quantkit.estimate`'s. Needs quantkit's
`train` dependencies but datasets and evaluate.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_measure import device_facts, full_arrays, host_milliseconds, memory, milliseconds
from cuda_models import Sizes, random_model
from harness import RESULTS, Bar, finish, table
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.estimate import estimate
from quantkit.files import read_json, write_json
from quantkit.ptq import quantize
from quantkit.qat import Lsq, parameter_groups, prepare
from quantkit.recipe import Recipe, with_bits, with_changes

KINDS = ("float", "qat-8", "qat-4")
BATCH, LENGTH = 32, 128
TOY = Sizes(layers=2, hidden=64, heads=4, intermediate=128, vocab=500, positions=64)
TOY_BATCH, TOY_LENGTH = 2, 16
MOST = 1.10  # of a float step's time, for a step of QAT


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every kind of step in a process of its own, and report."""
    options = _options(arguments)
    if options.kind:
        write_json(options.out, _measured(options.kind, options))
        return 0
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            out = Path(folder) / f"{kind}.json"
            command = [sys.executable, __file__, "--kind", kind, "--out", str(out)]
            command += ["--device", options.device, *(["--toy"] if options.toy else [])]
            subprocess.run(command, check=True)
            found[kind] = read_json(out)
    return report(found, options)


def report(found: dict[str, Any], options: argparse.Namespace) -> int:
    """Bars, table and file of what the processes measured."""
    bars = [
        Bar(f"{kind} step / float step", found[kind]["ms"] / found["float"]["ms"], MOST, "at most")
        for kind in KINDS[1:]
    ]
    rows = [
        [
            kind,
            f"{found[kind]['ms']:.1f}",
            f"{found[kind]['host_ms']:.1f}",
            _mb(found[kind]["torch_peak"]),
        ]
        for kind in KINDS
    ]
    print(table(["step", "ms", "on the host, ms", "peak MB"], rows))
    print(f"Peak of float by the formula: {_mb(found['float']['formula']['peak'])} MB")
    results = {"device": device_facts(torch.device(options.device)), "steps": found}
    return finish("cuda_training", bars, results, check=options.check, folder=options.results)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory and time of training steps on a GPU.")
    add = parser.add_argument
    add("--device", default="cuda")
    add("--toy", action="store_true", help="a tiny model")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="for cuda_training.json")
    add("--kind", choices=KINDS, help=argparse.SUPPRESS)
    add("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measured(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of one kind of step."""
    device = torch.device(options.device)
    sizes = TOY if options.toy else Sizes()
    batch, length = (TOY_BATCH, TOY_LENGTH) if options.toy else (BATCH, LENGTH)
    model = random_model(sizes)
    formula = estimate(model, length=length, batch_size=batch, mixed=True)
    trained, groups = _trainable(model, kind)
    step = _step(_moved(trained, device), groups, sizes, batch, length, device)
    times = milliseconds(step, device)
    return {
        "ms": float(np.median(times)),
        "host_ms": host_milliseconds(step, device),
        "calls": len(times),
        "batch": batch,
        "length": length,
        "formula": {**asdict(formula), "peak": formula.peak},
        **memory(device),
    }


def _trainable(model: PreTrainedModel, kind: str) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """The model of a step, and the optimizer's groups."""
    if kind == "float":
        return model, [{"params": list(model.parameters()), "lr": 2e-5, "weight_decay": 0.01}]
    base = with_bits(Recipe(name="training", task="none", model="none"), int(kind[-1]))
    recipe = with_changes(base, {"rounding": {"name": "nearest"}})
    tokens = full_arrays(8, 16, model.config.vocab_size)
    made = quantize(model, [{n: torch.from_numpy(a) for n, a in tokens.items()}], recipe=recipe)
    trained = prepare(model, made, Lsq())
    return trained, parameter_groups(trained, lr=2e-5, weight_decay=0.01, scale_lr=1e-3)


def _step(
    model: PreTrainedModel,
    groups: list[dict[str, Any]],
    sizes: Sizes,
    batch: int,
    length: int,
    device: torch.device,
) -> Callable[[], Tensor]:
    """Forward in bf16, backward, AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(groups, fused=True)
    arrays = full_arrays(batch, length, sizes.vocab)
    inputs = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(**inputs).logits
        loss: Tensor = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _moved(model: Any, device: torch.device) -> PreTrainedModel:  # noqa: ANN401
    moved: PreTrainedModel = model.to(device)
    return moved


def _mb(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


if __name__ == "__main__":
    sys.exit(main())
