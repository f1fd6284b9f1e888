"""What post-training quantization costs: quantkit's settings beside other tools, one checkpoint.

    python benchmarks/ptq_accuracy.py --task nergrit --seed 0 --model FOLDER --data FOLDER \
        --peers-python PEERS/bin/python

A unit is one (task, seed): the float model is fine-tuned once, or taken from `--runs` if it is
there, and every method starts from it. One JSON per unit lies in benchmarks/results; a unit that
has one is left alone. Without `--task` all units are made; then, and with `--summary`, means and
bars over the units that are there are printed.

Searches of every tool see training and validation rows only. Where a tool has several
calibrations or algorithms, the one with the best validation score is the tool's result.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bar, finish, table
from peers import Row, write_rows
from units import HEADER, Unit, by_task, cells, finished, labelling, make_units, means, parser

from quantkit import pipeline
from quantkit.batching import Encoded
from quantkit.calibration_texts import calibration_batches
from quantkit.checkpoint import length_limit, load_float, reachable_rows
from quantkit.data import inputs_of
from quantkit.files import write_json
from quantkit.measure import environment
from quantkit.metrics import MAIN
from quantkit.prediction import Outputs, outputs_of, predict
from quantkit.recipe import with_bits, with_changes
from quantkit.runtime import load
from quantkit.simulation import simulate
from quantkit.study import method_scores, shareable

NAIVE = {"smoothing": {"name": "none"}, "rounding": {"name": "nearest"}}
TENSOR = {**NAIVE, "weights.per": "tensor"}

# Changes to the task's recipe at so many bits.
OWN: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "naive w8a8": (8, TENSOR),
    "naive w8a8, all activations": (8, {**TENSOR, "activations.scope": "all"}),
    "w8a8": (8, {}),
    "w8a8, nearest": (8, {"rounding": {"name": "nearest"}}),
    "naive w4a8": (4, {**NAIVE, "weights.per": "channel", "embeddings": {"bits": 8}}),
    "w4a8": (4, {}),
    "w4a16": (4, {"activations.bits": 16}),
    "w4a4": (4, {"activations.bits": 4}),
}
# Of each tool's variants the best on validation rows counts.
PEERS: Mapping[str, Sequence[str]] = {
    "onnxruntime dynamic int8": ("ort-dynamic",),
    "onnxruntime static int8": (
        "ort-static-minmax",
        "ort-static-entropy",
        "ort-static-percentile",
    ),
    "NNCF int8": ("nncf-int8",),
    "torchao int8 dynamic": ("torchao-int8-dynamic",),
    "torchao int8 weights": ("torchao-int8-weight-only",),
    "onnxruntime 4-bit nearest": ("ort-4bit-nearest",),
    "onnxruntime 4-bit, best algorithm": ("ort-4bit-hqq", "ort-4bit-kquant", "ort-4bit-gptq"),
    "torchao int4 weights": ("torchao-int4-weight-only",),
}
# What each of quantkit's settings is to be compared with: the same integers.
RIVALS = {
    "w8a8": (
        "onnxruntime dynamic int8",
        "onnxruntime static int8",
        "NNCF int8",
        "torchao int8 dynamic",
    ),
    "w4a16": (
        "onnxruntime 4-bit nearest",
        "onnxruntime 4-bit, best algorithm",
        "torchao int4 weights",
    ),
}


def own_outputs(unit: Unit, name: str, folder: Path) -> Outputs:
    """Test outputs of the setting `name` of `OWN`: of its file, or of a simulation."""
    bits, changes = OWN[name]
    recipe = with_changes(with_bits(unit.recipe, bits), changes)
    train = inputs_of(unit.task.splits["train"], unit.task.head)
    if recipe.activations.scope == "inputs":
        pipeline.ptq_checkpoint(recipe, unit.run.float_folder, train, folder)
        return load(folder).outputs(inputs_of(unit.task.splits["test"], unit.task.head))
    model, tokenizer = load_float(unit.run.float_folder)
    limit = length_limit(model, tokenizer, recipe.max_length)
    batches = list(calibration_batches(model, tokenizer, train, recipe, limit))
    simulated = simulate(model, batches, recipe=recipe, reachable_rows=reachable_rows(tokenizer))
    return predict(simulated.model, unit.encoded["test"], pad_token_id=tokenizer.pad_token_id or 0)


def own_methods(unit: Unit, baseline: Outputs, scratch: Path) -> dict[str, Any]:
    """Scores of all of quantkit's settings."""
    results = {}
    for name in OWN:
        began = time.perf_counter()
        folder = scratch / name.replace(" ", "-")
        outputs = own_outputs(unit, name, folder)
        made = folder if folder.is_dir() else None
        entry = method_scores(unit.task.head, unit.references("test"), outputs, baseline, made)
        results[name] = {**entry, "seconds": time.perf_counter() - began}
        print(f"  {name}: {unit.brief(entry)}", flush=True)
    return results


def peer_methods(unit: Unit, baseline: Outputs, scratch: Path, python: Path) -> dict[str, Any]:
    """Scores of the other tools, each in a process of its own."""
    prepare_peers(unit, scratch)
    results: dict[str, Any] = {}
    for tool, variants in PEERS.items():
        tried = {name: peer_outputs(unit, name, scratch, python) for name in variants}
        works = {name: found for name, found in tried.items() if "validation" in found}
        failed = {name: found["error"] for name, found in tried.items() if "error" in found}
        if not works:
            results[tool] = {"failed": failed}
            print(f"  {tool}: failed", flush=True)
            continue
        scores = {n: unit.validation_score(found["validation"]) for n, found in works.items()}
        best = max(scores, key=scores.__getitem__)
        entry = method_scores(
            unit.task.head, unit.references("test"), works[best]["test"], baseline, None
        )
        entry |= {"bytes": works[best]["bytes"], "seconds": works[best]["seconds"]}
        results[tool] = {**entry, "variant": best, "validation": scores, "failed": failed}
        print(f"  {tool} ({best}): {unit.brief(entry)}", flush=True)
    return results


def prepare_peers(unit: Unit, scratch: Path) -> None:
    """Write the texts that the other tools calibrate with and are judged on."""
    model, tokenizer = load_float(unit.run.float_folder)
    limit = length_limit(model, tokenizer, unit.recipe.max_length)
    train = inputs_of(unit.task.splits["train"], unit.task.head)
    batches = calibration_batches(model, tokenizer, train, unit.recipe, limit)
    rows = [Row(ids.numpy()) for batch in batches for ids in batch["input_ids"]]
    write_rows(scratch / "train.npz", rows)
    for split, encoded in unit.encoded.items():
        write_rows(scratch / f"{split}.npz", _rows(encoded))


def peer_outputs(unit: Unit, name: str, scratch: Path, python: Path) -> dict[str, Any]:
    """Another tool's outputs by split, bytes and seconds; or the `error` that it ended in."""
    files = {split: scratch / f"{split}-{name}.npz" for split in unit.encoded}
    command = [python, Path(__file__).parent / "peers.py", "--method", name]
    command += ["--checkpoint", unit.run.float_folder, "--calibration", scratch / "train.npz"]
    command += ["--inputs", *(scratch / f"{split}.npz" for split in files)]
    command += ["--output", *files.values()]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = {}
    for split, file in files.items():
        with np.load(file) as answers:
            found[split] = _outputs(unit.encoded[split], answers["logits"], answers["offsets"])
            found["bytes"], found["seconds"] = int(answers["bytes"]), float(answers["seconds"])
    return found


def _rows(encoded: Encoded) -> list[Row]:
    types = encoded.types
    return [
        Row(encoded.ids[at].astype(np.int64), None if types is None else types[at].astype(np.int64))
        for at in range(len(encoded))
    ]


def _outputs(encoded: Encoded, logits: np.ndarray, offsets: np.ndarray) -> Outputs:
    """A peer's logits, window by window, as quantkit's outputs."""
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    parts = [logits[start:end] for start, end in spans]
    windows = {at: part if encoded.words is not None else part[0] for at, part in enumerate(parts)}
    return outputs_of(encoded, windows)


def make_unit(task: str, seed: int, options: argparse.Namespace) -> None:
    """One unit's JSON, unless it is there."""
    target = options.results / f"ptq_accuracy_{task}_{seed}.json"
    if target.is_file():
        return
    print(f"{task}, seed {seed}", flush=True)
    unit = Unit.make(task, seed, options)
    head, test = unit.task.head, unit.task.splits["test"]
    baseline = unit.file_outputs(unit.run.float_folder)
    with tempfile.TemporaryDirectory() as scratch:
        scores = {
            "float": method_scores(
                head, unit.references("test"), baseline, None, unit.run.float_folder
            ),
            **own_methods(unit, baseline, Path(scratch)),
            **peer_methods(unit, baseline, Path(scratch), options.peers_python),
        }
    result = {
        "benchmark": "ptq_accuracy",
        "task": task,
        "seed": seed,
        "main": MAIN[head.kind],
        "test_rows": len(test),
        "recipe": shareable(unit.recipe),
        "methods": {name: {"bits": bits, **changes} for name, (bits, changes) in OWN.items()},
        "scores": scores,
        "environment": environment(1),
    }
    write_json(target, result)


def summarize(options: argparse.Namespace) -> int:
    """Means over the units that are there, and the bars."""
    units = finished("ptq_accuracy", options.results)
    if not units:
        print("No unit is there yet.")
        return 1
    names = ["float", *OWN, *PEERS]
    found = {name: means(units, name) for name in names}
    print("\n" + table(HEADER, cells(found)))
    print("\nchange / labels equal, by task\n" + table(*by_task(units, names[1:])))
    results = {
        "units": [f"{unit['task']}_{unit['seed']}" for unit in units],
        "means": {name: each.to_json() for name, each in found.items()},
    }
    return finish("ptq_accuracy", bars(units), results, check=options.check, folder=options.results)


def bars(units: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What the units promise together: drops against float in points, and leads over peers."""
    found = {name: means(units, name) for name in ("w8a8", "w4a8", "w4a16")}
    words = means(labelling(units), "w4a8")
    result = [
        Bar("W8A8: drop", -found["w8a8"].change, 0.3, "at most"),
        Bar("W8A8: labels equal", found["w8a8"].equal, 98.8, "at least"),
        Bar("W4A8: drop", -found["w4a8"].change, 1.5, "at most"),
        Bar("W4A8: drop, labelling", -words.change, 2.5, "at most"),
        Bar("W4A8: labels equal", found["w4a8"].equal, 96.0, "at least"),
        Bar("W4A16: drop", -found["w4a16"].change, 0.8, "at most"),
        Bar("W4A16: labels equal", found["w4a16"].equal, 97.5, "at least"),
    ]
    for own, rivals in RIVALS.items():
        score, equal = leads(units, own, rivals)
        result.append(Bar(f"{own}: best rival's lead in score", -score, 0.2, "at most"))
        result.append(Bar(f"{own}: lead in labels equal", equal, 0.0, "at least"))
    return result


def leads(
    units: Sequence[Mapping[str, Any]], own: str, rivals: Sequence[str]
) -> tuple[float, float]:
    """By how much `own` is before the best rival: score in points, labels in percent.

    Each rival is met on the units that it has a result for.
    """
    pairs = []
    for rival in rivals:
        shared = [unit for unit in units if unit["main"] in unit["scores"].get(rival, {})]
        if shared:
            pairs.append((means(shared, own), means(shared, rival)))
    score = min((mine.score - other.score for mine, other in pairs), default=float("nan"))
    equal = min((mine.equal - other.equal for mine, other in pairs), default=float("nan"))
    return score, equal


def options_of(doc: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a benchmark that runs other tools too."""
    known = parser(doc, "ptq_accuracy")
    known.add_argument(
        "--peers-python", type=Path, default=Path(sys.executable), help="interpreter with peers"
    )
    return known.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(__doc__, arguments)
    make_units(make_unit, options)
    return summarize(options)


if __name__ == "__main__":
    sys.exit(main())
