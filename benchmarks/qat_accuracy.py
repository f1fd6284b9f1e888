"""What quantization-aware training wins over post-training quantization, from one checkpoint.

    python benchmarks/qat_accuracy.py --task nergrit --seed 0 --model FOLDER --data FOLDER

Variants of a unit: float, float trained on for as many steps, and W8A8, W4A8 and W4A4 before and
after training. Scores are those of exported files on the full test set. `--ablation` makes W4A8
four times instead, each with one thing more: straight-through gradients alone, learned scales,
the teacher's logits, its hidden states and attention. Training rows and, for the best epoch,
validation rows are all that training sees.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bar, finish, table
from units import HEADER, TASKS, Unit, cells, finished, labelling, make_units, means, parser

from quantkit.answers import decisions
from quantkit.files import read_json, write_json
from quantkit.measure import environment
from quantkit.metrics import MAIN, paired_bootstrap, statistics
from quantkit.prediction import Outputs
from quantkit.qat_line import qat
from quantkit.recipe import Recipe, with_bits, with_changes
from quantkit.runs import TRAINING, Run
from quantkit.study import method_scores, shareable

LONGER = "float, trained on"
# Changes to the task's recipe at so many bits.
VARIANTS: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "w8a8": (8, {}),
    "w4a8": (4, {}),
    "w4a4": (4, {"activations.bits": 4}),
}
NOBODY = {"qat.teacher": "none"}
LOGITS = {"qat.distillation.hidden": 0.0, "qat.distillation.attention": 0.0}
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "STE": {"qat.scales": {"name": "fixed"}, **NOBODY},
    "+ learned scales": NOBODY,
    "+ logits": LOGITS,
    "+ hidden and attention": {},
}
# Of the record of a training.
KEPT = (
    "steps",
    "seconds",
    "best_epoch",
    "best_score",
    "history",
    "test",
    "validation_score_before",
    "validation_divergence_before",
    "settings",
)
BENCHMARK, ABLATED = "qat_accuracy", "qat_ablation"


class Bench:
    """A unit with a run of its own to work in: what `--runs` holds is only read.

    Args:
        unit: the fine-tuned model.
        options: the command line's.
    """

    def __init__(self, unit: Unit, options: argparse.Namespace) -> None:
        self.unit, self.options = unit, options
        self.run = Run(options.work / unit.run.folder.name)
        if not self.run.complete:
            for name in ("float", "run.json"):
                source, target = unit.run.folder / name, self.run.folder / name
                self.run.folder.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        self.baseline = unit.file_outputs(self.run.float_folder)
        self.longer: Outputs | None = None

    def recipe(self, bits: int, changes: Mapping[str, Any], *, control: bool) -> Recipe:
        """The recipe of one variant."""
        trained = {
            "qat.epochs": self.options.epochs,
            "qat.precision": "bf16",
            "qat.seed": self.unit.recipe.finetune.seed,
            "qat.control": control,
        }
        return with_changes(with_bits(self.unit.recipe, bits), {**trained, **changes})

    def train(self, recipe: Recipe, folder: Path | None = None) -> float:
        """Make a trained folder unless it is there; the seconds that took."""
        target = folder or self.run.qat_folder(recipe)
        began = time.perf_counter()
        if not target.is_dir():
            qat(recipe, self.run, self.options.data, folder=folder, resume=True)
        return time.perf_counter() - began

    def scores(self, folder: Path) -> dict[str, Any]:
        """A folder's scores, and against the float model trained on where it was trained."""
        unit, head = self.unit, self.unit.task.head
        outputs = unit.file_outputs(folder)
        references = unit.references("test")
        baseline = None if folder == self.run.float_folder else self.baseline
        entry = method_scores(head, references, outputs, baseline, folder)
        if folder == self.run.longer_folder:
            self.longer = outputs
        if (folder / TRAINING).is_file():
            record = read_json(folder / TRAINING)
            entry["training"] = {key: record[key] for key in KEPT if key in record}
        if folder.name.endswith("-qat") and self.longer is not None:
            name = MAIN[head.kind]
            longer, trained = (
                statistics(head, references, decisions(head, each))[name]
                for each in (self.longer, outputs)
            )
            entry["beyond_training"] = asdict(paired_bootstrap(longer, trained))
        return entry

    def close(self) -> None:
        """Remove the run: its result is written."""
        shutil.rmtree(self.run.folder)


def variants(bench: Bench) -> dict[str, Any]:
    """Scores of float, float trained on, and every variant before and after training."""
    made = {
        name: bench.recipe(bits, changes, control=True)
        for name, (bits, changes) in VARIANTS.items()
    }
    seconds = {name: bench.train(recipe) for name, recipe in made.items()}
    folders = {"float": bench.run.float_folder, LONGER: bench.run.longer_folder}
    for name, recipe in made.items():
        folders[name] = bench.run.quantized_folder(recipe)
        folders[f"{name}-qat"] = bench.run.qat_folder(recipe)
    found = {name: bench.scores(folder) for name, folder in folders.items()}
    for name, taken in seconds.items():
        found[f"{name}-qat"]["seconds"] = taken
    return found


def ablated(bench: Bench) -> dict[str, Any]:
    """Scores of W4A8 before training, and with one thing more each time."""
    found = {"float": bench.scores(bench.run.float_folder)}
    for at, (name, changes) in enumerate(ABLATION.items()):
        recipe = bench.recipe(4, changes, control=False)
        # The last is the whole recipe, and leaves behind what all of them start from.
        last = at == len(ABLATION) - 1
        folder = None if last else bench.run.folder / f"ablation-{at}"
        seconds = bench.train(recipe, folder)
        target = folder or bench.run.qat_folder(recipe)
        found[name] = {**bench.scores(target), "seconds": seconds}
        if last:
            start = bench.run.quantized_folder(recipe)
            found = {"float": found.pop("float"), "w4a8": bench.scores(start), **found}
    return found


def make_unit(task: str, seed: int, options: argparse.Namespace) -> None:
    """One unit's JSON, unless it is there."""
    benchmark = ABLATED if options.ablation else BENCHMARK
    target = options.results / f"{benchmark}_{task}_{seed}.json"
    if target.is_file():
        return
    print(f"{task}, seed {seed}", flush=True)
    began = time.perf_counter()
    unit = Unit.make(task, seed, options)
    bench = Bench(unit, options)
    scores = ablated(bench) if options.ablation else variants(bench)
    for name, entry in scores.items():
        if name != "float":
            print(f"  {name}: {unit.brief(entry)}", flush=True)
    result = {
        "benchmark": benchmark,
        "task": task,
        "seed": seed,
        "main": MAIN[unit.task.head.kind],
        "test_rows": len(unit.task.splits["test"]),
        "epochs": options.epochs,
        "recipe": shareable(unit.recipe),
        "variants": ABLATION if options.ablation else {n: list(v) for n, v in VARIANTS.items()},
        "scores": scores,
        "seconds": time.perf_counter() - began,
        "environment": environment(1),
    }
    write_json(target, result)
    bench.close()


def summarize(options: argparse.Namespace) -> int:
    """Means over the units that are there, and the bars."""
    units = finished(BENCHMARK, options.results)
    steps = finished(ABLATED, options.results)
    if steps:
        names = ["float", "w4a8", *ABLATION]
        found = {name: means(steps, name) for name in names}
        print("\nAblation at W4A8\n" + table(HEADER, cells(found)))
    if not units:
        print("No unit is there yet.")
        return 0 if steps else 1
    names = ["float", LONGER, *(n for v in VARIANTS for n in (v, f"{v}-qat"))]
    found = {name: means(units, name) for name in names}
    print("\n" + table(HEADER, cells(found)))
    results = {
        "units": [f"{unit['task']}_{unit['seed']}" for unit in units],
        "means": {name: each.to_json() for name, each in found.items()},
    }
    return finish(BENCHMARK, bars(units), results, check=options.check, folder=options.results)


def bars(units: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What the units promise together: drops against float in points, and the files' honesty."""
    drop = {name: -means(units, f"{name}-qat").change for name in VARIANTS}
    value, low, high = beyond_training(units, "w8a8-qat")
    result = [
        Bar("W8A8 QAT: drop", drop["w8a8"], 0.2, "at most"),
        Bar("W8A8 QAT: against float trained on", value, 0.0, "at least", (low, high)),
        Bar("W4A8 QAT: drop", drop["w4a8"], 0.4, "at most"),
        Bar("W4A4 QAT: drop", drop["w4a4"], 2.0, "at most"),
        Bar("file against training loop", _apart(units), 0.5, "at most"),
    ]
    if words := labelling(units):
        found = -means(words, "w4a8-qat").change
        result.insert(3, Bar("W4A8 QAT: drop, labelling", found, 0.8, "at most"))
    if posp := [unit for unit in units if unit["task"] == "posp"]:
        result.append(Bar("file against training loop, POSP", _apart(posp), 0.1, "at most"))
    return result


def beyond_training(units: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float]:
    """Mean change in points against the float model trained on, and its 95 % interval.

    Units are independent, so that the squares of their intervals' halves add up.
    """
    found = [unit["scores"][name]["beyond_training"] for unit in units]
    mean = float(np.mean([each["value"] for each in found]))
    halves = [(each["high"] - each["low"]) / 2 for each in found]
    half = math.sqrt(sum(half**2 for half in halves)) / len(halves)
    return 100 * mean, 100 * (mean - half), 100 * (mean + half)


def _apart(units: Sequence[Mapping[str, Any]]) -> float:
    """Points that a file's test score is from its training loop's, at most."""
    tests = [
        unit["scores"][f"{name}-qat"]["training"]["test"] for unit in units for name in VARIANTS
    ]
    return 100 * max(abs(float(test["file"]) - float(test["model"])) for test in tests)


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser(__doc__, BENCHMARK)
    known.add_argument("--ablation", action="store_true", help="what each part of W4A8 brings")
    known.add_argument("--epochs", type=int, default=2, help="of training from the float model")
    known.add_argument("--work", type=Path, default=Path("runs/qat_accuracy_work"))
    options = known.parse_args(arguments)
    make_units(make_unit, options, ("nergrit",) if options.ablation else TASKS)
    return summarize(options)


if __name__ == "__main__":
    sys.exit(main())
