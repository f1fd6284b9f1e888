"""quantkit's engine on a GPU beside transformers' model: time, memory, share of the chip's peak.

    python benchmarks/cuda_speed.py --work FOLDER --tokens smsa.safetensors
    python benchmarks/cuda_speed.py --toy --device cpu

It needs torch, Triton and transformers, no network and no datasets: `cuda_prepare.py` makes the
tokens beforehand. Each candidate has a process of its own. What is measured lies in FOLDER, so
that runs of at most `--minutes` each go on from one another; when nothing is left to measure, the
report is written. Answers on all texts are kept too: with `--models` of fine-tuned checkpoints
`cuda_accuracy.py` scores them. ONNX Runtime's candidates need onnxruntime-gpu and, in `--models`,
files of `quantkit export --target cuda` and `cuda-unpadded`; else they are left out, and the result
says why.
(A script called cuda.py would hide NVIDIA's package `cuda`.)
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bert_sizes import operations
from cuda_candidates import CANDIDATES, Candidate, make_candidate
from cuda_measure import (
    ceilings,
    device_facts,
    full_arrays,
    given_arrays,
    memory,
    milliseconds,
)
from cuda_models import Sizes, make_folders
from cuda_tokens import answers, load_encoded, padding_of
from harness import RESULTS, Bar, finish, table
from safetensors import safe_open

from quantkit.errors import DependencyError
from quantkit.files import read_json, write_json
from quantkit.kernels.tuning import chosen
from quantkit.providers import provider
from quantkit.worker import write_outputs

SHAPES = tuple((batch, length) for batch in (1, 8, 32, 128) for length in (32, 128, 384))
REAL_BATCH, REAL_TEXTS = 32, 512
CEILINGS = "ceilings"  # measured like a candidate
TOY = Sizes(layers=2, hidden=64, heads=4, intermediate=128, vocab=500, positions=64)
TOY_SHAPES = ((1, 16), (4, 32))
TOY_LENGTHS = (3, 30, 8, 12, 5, 9, 21, 4)
OWN = ("quantkit", "onnxruntime")
TOY_CANDIDATES = ("float32", *(name for name in CANDIDATES if name.startswith(OWN)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is left, or be the process of one candidate."""
    options = _options(arguments)
    if options.worker:
        _work(options)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    models = options.models or options.work / "models"
    if options.models is None:
        make_folders(_sizes(options), models)
        wanted = any(name.startswith("onnxruntime") for name in options.candidates)
        if wanted and _has_provider(options.device):
            from cuda_files import make_files  # which wants more than the rest of the script

            gpu = options.device == "cuda"
            make_files(_sizes(options), models, ("cuda", "cuda-unpadded") if gpu else ("cpu",))
    begin = time.monotonic()
    for name in (CEILINGS, *options.candidates):
        left = 60 * options.minutes - (time.monotonic() - begin)
        if _found(options.work, name).get("done"):
            continue
        if left < options.least_seconds or not _run(name, models, options, left):
            print(f"{name} is not done. Run the same command again to go on.")
            return 0
    return _report(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="quantkit's engine on a GPU beside the usual.")
    add = parser.add_argument
    add("--work", type=Path, required=True, metavar="DIR", help="for what is measured")
    add("--models", type=Path, metavar="DIR", help="float, w8a8, w4a8 ...; default: random weights")
    add("--tokens", type=Path, metavar="FILE", help="texts of `cuda_prepare.py tokens`")
    add("--device", default="cuda")
    add("--toy", action="store_true", help="a tiny model and few shapes")
    add("--minutes", type=float, default=9.5, help="of this run (%(default)s)")
    add("--least-seconds", type=float, default=20.0, help="left to begin a candidate (%(default)s)")
    add("--candidates", nargs="+", choices=CANDIDATES, metavar="NAME")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="for cuda_speed.json")
    add("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.candidates:
        options.candidates = TOY_CANDIDATES if options.toy else tuple(CANDIDATES)
    return options


def _has_provider(device: str) -> bool:
    """Whether there is an onnxruntime that runs on it."""
    try:
        provider(device)
    except DependencyError:
        return False
    return True


def _sizes(options: argparse.Namespace) -> Sizes:
    return TOY if options.toy else Sizes()


def _run(name: str, models: Path, options: argparse.Namespace, seconds: float) -> bool:
    """One candidate's process; whether it came to an end in time."""
    command = [sys.executable, __file__, "--worker", name, "--work", str(options.work)]
    command += ["--models", str(models), "--device", options.device]
    command += ["--toy"] if options.toy else []
    command += ["--tokens", str(options.tokens)] if options.tokens else []
    try:
        subprocess.run(command, timeout=seconds, check=True)
    except subprocess.TimeoutExpired:
        return False
    except subprocess.CalledProcessError as problem:
        found = _found(options.work, name)
        _save(options.work, name, {**found, "failed": str(problem.returncode), "done": True})
    return True


# --- one candidate's process ---------------------------------------------------------


def _work(options: argparse.Namespace) -> None:
    """Measure what a candidate's file lacks; the file is written after each measurement."""
    name, device = options.worker, torch.device(options.device)
    found = _found(options.work, name)
    if name == CEILINGS:
        size = 256 if options.toy else 8192
        _save(options.work, name, {"ceilings": ceilings(device, size), "done": True})
        return
    begin = time.perf_counter()
    try:
        candidate = make_candidate(name, options.models, device)
    except (LookupError, OSError) as problem:
        _save(options.work, name, {"left_out": str(problem), "done": True})
        return
    found |= {"weight_bytes": candidate.weight_bytes}
    found.setdefault("open_seconds", time.perf_counter() - begin)
    sizes, lengths = _read_config(options.models), _lengths(options.tokens)
    for batch, length in TOY_SHAPES if options.toy else SHAPES:
        shape = f"{batch}x{length}"
        if shape not in found.setdefault("shapes", {}):
            found["shapes"][shape] = _shape(candidate, sizes, [length] * batch, device)
            _save(options.work, name, found)
    if "real" not in found:
        found["real"] = _real(candidate, sizes, lengths, device)
        _save(options.work, name, found)
    found["memory"] = memory(device)
    if options.tokens:
        texts, padding = load_encoded(options.tokens), padding_of(options.models / "float")
        write_outputs(options.work / f"{name}.npz", answers(candidate.run, texts, padding))
    _save(options.work, name, {**found, "tiles": chosen(), "done": True})


def _shape(
    candidate: Candidate, sizes: Mapping[str, int], lengths: Sequence[int], device: torch.device
) -> dict[str, Any]:
    arrays = full_arrays(len(lengths), lengths[0], sizes["vocab"])
    times = milliseconds(candidate.prepare(arrays), device)
    p50, p90 = np.quantile(times, (0.5, 0.9))
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "calls": len(times),
        "texts_per_second": len(lengths) / p50 * 1e3,
        "operations": operations(sizes, lengths),
    }


def _real(
    candidate: Candidate, sizes: Mapping[str, int], lengths: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Batches of texts as they come, each as long as its longest text."""
    total, tokens = 0.0, 0
    for start in range(0, len(lengths), REAL_BATCH):
        part = lengths[start : start + REAL_BATCH]
        arrays = given_arrays(part, sizes["vocab"])
        total += float(np.median(milliseconds(candidate.prepare(arrays), device)))
        tokens += sum(part)
    return {
        "ms": total,
        "texts": len(lengths),
        "tokens": tokens,
        "texts_per_second": len(lengths) / total * 1e3,
        "operations": operations(sizes, lengths),
    }


def _lengths(tokens: Path | None) -> list[int]:
    if tokens is None:
        return list(TOY_LENGTHS)
    with safe_open(tokens, framework="np") as file:
        lengths: list[int] = np.diff(file.get_tensor("ends"))[:REAL_TEXTS].tolist()
    return lengths


def _read_config(models: Path) -> dict[str, int]:
    config = read_json(models / "float" / "config.json")
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "intermediate": "intermediate_size",
        "vocab": "vocab_size",
    }
    return {name: int(config[key]) for name, key in names.items()}


def _found(work: Path, name: str) -> dict[str, Any]:
    file = work / f"{name}.json"
    return read_json(file) if file.is_file() else {}


def _save(work: Path, name: str, values: Mapping[str, Any]) -> None:
    write_json(work / f"{name}.json", dict(values))


# --- the report ----------------------------------------------------------------------


def _report(options: argparse.Namespace) -> int:
    found = {name: _found(options.work, name) for name in options.candidates}
    peaks = _found(options.work, CEILINGS).get("ceilings", {})
    for name, entry in found.items():
        _add_shares(entry, peaks, CANDIDATES[name][2])
    results = {
        "device": device_facts(torch.device(options.device)),
        "model": _read_config(options.models or options.work / "models"),
        "ceilings": peaks,
        "candidates": found,
    }
    shapes = [f"{b}x{n}" for b, n in (TOY_SHAPES if options.toy else SHAPES)]
    rows = [_row(name, entry, shapes) for name, entry in found.items()]
    print(table(["median ms", *shapes, "real lengths"], rows))
    return finish("cuda_speed", _bars(found), results, check=options.check, folder=options.results)


def _add_shares(entry: dict[str, Any], peaks: Mapping[str, float], kind: str) -> None:
    """How much of the measured peaks a shape reaches: of its products' kind, and of a copy's bytes.

    Every call reads all weights at least once, and that is what the share of bytes counts.
    """
    for shape in [*entry.get("shapes", {}).values(), *filter(None, [entry.get("real")])]:
        seconds = 1e-3 * (shape.get("p50_ms") or shape["ms"])
        if kind in peaks:
            shape["share_of_peak"] = shape["operations"] / seconds / peaks[kind]
        if "bytes" in peaks:
            calls = -(-shape.get("texts", 1) // REAL_BATCH)
            shape["share_of_bytes"] = calls * entry["weight_bytes"] / seconds / peaks["bytes"]


def _bars(found: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """What the engine promises, as far as it was measured."""

    def time_of(name: str, shape: str) -> float:
        entry = found.get(name, {})
        part = entry.get("real", {}) if shape == "real" else entry.get("shapes", {}).get(shape, {})
        return float(part.get("ms", part.get("p50_ms", float("nan"))))

    def best(names: Sequence[str], shape: str) -> float:
        return float(np.nanmin([time_of(name, shape) for name in names] + [np.inf]))

    halves = ["bf16", "fp16", "fp16-compile", "quantkit-fp16", "onnxruntime-fp16"]
    compiled, own = "fp16-compile", "quantkit-fp16"
    if "shapes" not in found.get(compiled, {}):
        return []
    bars = []
    for shape in ("1x32", "1x128", "1x384"):
        ratio = time_of(own, shape) / time_of(compiled, shape)
        bars.append(Bar(f"{own} / {compiled} at {shape}", ratio, 1.0, "at most"))
    real = time_of(own, "real") / time_of(compiled, "real")
    bars.append(Bar("the same, real lengths, batch 32", real, 0.8, "at most"))
    eight = best(["quantkit-int8", "quantkit-fp8"], "128x128") / best(halves, "128x128")
    bars.append(Bar("8 bits / best 16 bits at 128x128", eight, 0.75, "at most"))
    small = found.get("quantkit-4bit", {}).get("weight_bytes", np.nan)
    whole = found.get("float32", {}).get("weight_bytes", np.nan)
    bars.append(Bar("4-bit weights / float32's, bytes", small / whole, 0.20, "at most"))
    return bars


def _row(name: str, entry: Mapping[str, Any], shapes: Sequence[str]) -> list[str]:
    measured = entry.get("shapes", {})
    times = [measured.get(shape, {}).get("p50_ms") for shape in shapes]
    return [name, *map(_cell, times), _cell(entry.get("real", {}).get("ms"))]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
