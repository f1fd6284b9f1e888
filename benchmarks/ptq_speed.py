"""Time, memory and size of quantizing BERT-base: 256 texts of 128 tokens, 8 bits and 4 bits.

    python benchmarks/ptq_speed.py --tokenizer FOLDER

The model has IndoBERT's configuration (50,000 declared word rows) and random weights; the
tokenizer, IndoBERT's own, says how many rows can be reached. Each number of bits is a process of
its own. Times are set against one forward pass of the same texts in the same process; memory is
the process's peak minus what it held after its imports, against the model's own bytes. The 4-bit
file is also set against onnxruntime's own 4-bit file of the same model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bert_sizes import DECLARED_ROWS, random_model
from harness import RESULTS, Bar, finish, table
from latency_files import Environments, Sizes, make
from transformers import AutoTokenizer, PreTrainedModel

from quantkit.checkpoint import reachable_rows
from quantkit.exporter.bert import build
from quantkit.exporter.inspect import bytes_by_component
from quantkit.memory import resident_bytes, return_freed_memory
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, with_bits

BITS = (8, 4)
SAMPLES, LENGTH, BATCH = 256, 128, 16
SIZES = Sizes(vocab=DECLARED_ROWS)


class _Clock:
    """Seconds that each phase of a quantization took, told apart by its progress."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "reading inputs", time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        del done, total
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = what, now


def worker(bits: int, tokenizer: Path, threads: int) -> dict[str, Any]:
    """Quantize once and measure."""
    torch.set_num_threads(threads)
    before = resident_bytes()
    model = random_model(SIZES)
    model.train(False)
    rows = reachable_rows(AutoTokenizer.from_pretrained(tokenizer))
    batches = list(_batches(rows))
    forward = _forward_seconds(model, batches)
    return_freed_memory()
    recipe = with_bits(Recipe(name="speed", task="none", model="none"), bits)
    clock, began = _Clock(), time.perf_counter()
    made = quantize(model, batches, recipe=recipe, reachable_rows=rows, progress=clock)
    clock("export", 0, 0)
    seconds, peak = time.perf_counter() - began, resident_bytes(peak=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(build(made.model, {}), path)
        parts = bytes_by_component(path)
        theirs = _their_bytes(Path(folder)) if bits == 4 else None
    return {
        "bits": bits,
        "onnxruntime_bytes": theirs,
        "float_bytes": 4 * sum(parameter.numel() for parameter in model.parameters()),
        "reachable_rows": rows,
        "forward_seconds": forward,
        "seconds": seconds,
        "phases": clock.seconds,
        "memory_bytes": peak - before,
        "components": {**asdict(parts), "total": parts.total},
    }


def _their_bytes(folder: Path) -> int:
    """Of the file that onnxruntime's MatMulNBits tool makes of torch's export of the same model."""
    return (make("MatMulNBits", SIZES, folder, Environments()) / "model.onnx").stat().st_size


def _batches(rows: int) -> Sequence[Mapping[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(5, rows, (SAMPLES, LENGTH)))
    return [
        {
            "input_ids": part,
            "attention_mask": torch.ones_like(part),
            "token_type_ids": torch.zeros_like(part),
        }
        for part in torch.split(ids, BATCH)
    ]


def _forward_seconds(
    model: PreTrainedModel, batches: Sequence[Mapping[str, torch.Tensor]]
) -> float:
    """One pass over all texts."""
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    return time.perf_counter() - began


def _measured(bits: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--worker", str(bits)]
    command += ["--tokenizer", str(options.tokenizer), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _bars(eight: Mapping[str, Any], four: Mapping[str, Any]) -> list[Bar]:
    search = eight["phases"].get("smoothing", 0.0)
    passes = (eight["seconds"] - search) / eight["forward_seconds"]
    return [
        Bar("float, MB", eight["float_bytes"] / 1e6, 499, "at most"),
        Bar("8-bit file, MB", eight["components"]["total"] / 1e6, 112, "at most"),
        Bar("4-bit file, MB", four["components"]["total"] / 1e6, 60, "at most"),
        Bar(
            "4-bit file / onnxruntime's",
            four["components"]["total"] / four["onnxruntime_bytes"],
            0.30,
            "at most",
        ),
        Bar("W8A8 without the search, forward passes", passes, 3.0, "at most"),
        Bar("W4A8 with GPTQ, minutes", four["seconds"] / 60, 15.0, "at most"),
        *(
            Bar(f"memory at {each['bits']} bits / model", _memory(each), 2.5, "at most")
            for each in (eight, four)
        ),
    ]


def _memory(found: Mapping[str, Any]) -> float:
    return float(found["memory_bytes"] / found["float_bytes"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--tokenizer", type=Path, required=True, help="folder of IndoBERT's tokenizer")
    add("--threads", type=int, default=2)
    add("--results", type=Path, default=RESULTS)
    add("--check", action="store_true", help="exit 1 if a bar is missed")
    add("--worker", type=int, choices=BITS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        print(json.dumps(worker(options.worker, options.tokenizer, options.threads)))
        return 0
    eight, four = (_measured(bits, options) for bits in BITS)
    names = list(eight["components"])
    cells = [
        [f"{each['bits']} bits, MB", *(f"{each['components'][name] / 1e6:.2f}" for name in names)]
        for each in (eight, four)
    ]
    print(table(["size", *names], cells))
    for each in (eight, four):
        phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in each["phases"].items())
        print(
            f"{each['bits']} bits: {each['seconds']:.0f} s ({phases}); "
            f"one forward pass {each['forward_seconds']:.0f} s"
        )
    results = {"w8a8": eight, "w4a8": four}
    return finish(
        "ptq_speed",
        _bars(eight, four),
        results,
        check=options.check,
        folder=options.results,
        threads=options.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
