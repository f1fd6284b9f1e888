"""What the accuracy benchmarks share: a unit is one fine-tuned model with all it is judged on.

A unit is one (task, seed). Its float model is fine-tuned once, or taken from `--runs` if it is
there, and every method starts from it. A finished unit is one JSON in benchmarks/results and is
left alone.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS

from quantkit import pipeline
from quantkit.answers import decisions
from quantkit.batching import Encoded, encode_unlabelled
from quantkit.checkpoint import length_limit, load_float, takes_token_types
from quantkit.data import TaskData, inputs_of, load_task, references_of
from quantkit.files import read_json
from quantkit.metrics import MAIN, main_score
from quantkit.prediction import Outputs
from quantkit.recipe import Recipe, load_recipe, with_changes
from quantkit.runs import Run
from quantkit.runtime import load

LABELLING = ("nergrit", "posp", "terma")
TASKS = ("smsa", "emot", "hoasa", *LABELLING)
SEEDS = (0, 1, 2)
FINETUNE = {"finetune.lr": 1e-4, "finetune.precision": "bf16"}


@dataclass(frozen=True)
class Unit:
    """One fine-tuned model with everything that it is judged on."""

    task: TaskData
    recipe: Recipe
    run: Run
    encoded: Mapping[str, Encoded]  # by split

    @classmethod
    def make(cls, task: str, seed: int, options: argparse.Namespace) -> "Unit":
        """Fine-tune, unless that was done."""
        recipe = load_recipe(f"indonlu/{task}.yaml")
        own = {"model": options.model, "finetune.seed": seed}
        recipe = with_changes(recipe, {**FINETUNE, **own})
        run = Run(options.runs / f"{task}-{seed}")
        if not run.complete:
            pipeline.finetune(recipe, run, options.data, resume=True)
        data = load_task(task, options.data, None)
        model, tokenizer = load_float(run.float_folder)
        limit = length_limit(model, tokenizer, recipe.max_length)
        encoded = {
            split: encode_unlabelled(
                tokenizer,
                inputs_of(data.splits[split], data.head),
                data.head,
                limit,
                types=takes_token_types(model),
            )
            for split in ("validation", "test")
        }
        return cls(data, recipe, run, encoded)

    def references(self, split: str) -> Any:  # noqa: ANN401
        """The right answers of a split."""
        return references_of(self.task.splits[split], self.task.head)

    def validation_score(self, outputs: Outputs) -> float:
        """The main score of the validation rows."""
        head = self.task.head
        return main_score(head, self.references("validation"), decisions(head, outputs))

    def file_outputs(self, folder: Path) -> Outputs:
        """What an exported folder says of the test rows; a float one is exported if need be."""
        if not (folder / "onnx").is_dir():
            pipeline.export_float(folder, self.recipe)
        return load(folder).outputs(inputs_of(self.task.splits["test"], self.task.head))

    def brief(self, entry: Mapping[str, Any]) -> str:
        """A method's scores in a few words."""
        value, change = entry[MAIN[self.task.head.kind]]["value"], entry["change"]["value"]
        return f"{100 * value:.2f} ({100 * change:+.2f}), equal {100 * entry['agreement']:.2f} %"


def finished(benchmark: str, results: Path) -> list[dict[str, Any]]:
    """The results of the units that are done."""
    files = (results / f"{benchmark}_{task}_{seed}.json" for task in TASKS for seed in SEEDS)
    return [read_json(file) for file in files if file.is_file()]


@dataclass(frozen=True)
class Means:
    """A method's means over units; without a unit they are NaN.

    Attributes:
        score: the tasks' own, in percent.
        change: against the float model, in points.
        equal: labels that are the float model's, in percent.
        megabytes: of the file, of those units that say it.
        units: how many.
    """

    score: float
    change: float
    equal: float
    megabytes: float
    units: int

    def to_json(self) -> dict[str, float | None]:
        """All fields; what is no number becomes null."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def means(units: Sequence[Mapping[str, Any]], name: str) -> Means:
    """One method's means over the units that have it."""
    rows = []
    for unit in units:
        entry, main = unit["scores"].get(name, {}), unit["main"]
        if main in entry:
            change = entry["change"]["value"] if "change" in entry else 0.0
            size = entry.get("bytes") or math.nan
            rows.append((entry[main]["value"], change, entry.get("agreement", 1.0), size))
    if not rows:
        return Means(math.nan, math.nan, math.nan, math.nan, 0)
    score, change, equal = 100 * np.mean([row[:3] for row in rows], axis=0)
    sizes = [row[3] for row in rows if not math.isnan(row[3])]
    megabytes = float(np.mean(sizes)) / 1e6 if sizes else math.nan
    return Means(float(score), float(change), float(equal), megabytes, len(rows))


def labelling(units: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose task labels words."""
    return [unit for unit in units if unit["task"] in LABELLING]


def cells(found: Mapping[str, Means]) -> list[list[str]]:
    """The rows of a table of `means`, under `HEADER`."""
    return [
        [
            name,
            f"{each.score:.2f}",
            f"{each.change:+.2f}",
            f"{each.equal:.2f}",
            "" if math.isnan(each.megabytes) else f"{each.megabytes:.1f}",
            str(each.units),
        ]
        for name, each in found.items()
    ]


HEADER = ["method", "score", "change", "labels equal, %", "file, MB", "units"]


def tasks_of(units: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tasks that have a unit, in the order of `TASKS`."""
    return [task for task in TASKS if any(unit["task"] == task for unit in units)]


def by_task(
    units: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with each task's mean change and equal labels, in percent."""
    tasks = tasks_of(units)
    rows = []
    for name in names:
        row = [means([unit for unit in units if unit["task"] == task], name) for task in tasks]
        rows.append([name, *(f"{each.change:+.2f} / {each.equal:.2f}" for each in row)])
    return ["method", *tasks], rows


def make_units(
    make_unit: Callable[[str, int, argparse.Namespace], None],
    options: argparse.Namespace,
    tasks: Sequence[str] = TASKS,
) -> None:
    """All units that the options ask for, of `tasks` by default; with `--summary` none."""
    if options.summary:
        return
    for seed in options.seed:
        for task in options.task or tasks:
            make_unit(task, seed, options)


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common."""
    result = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    add = result.add_argument
    add("--task", choices=TASKS, nargs="+", help="default: all")
    add("--seed", type=int, nargs="+", default=list(SEEDS))
    add("--model", default="indobenchmark/indobert-base-p1", help="pretrained encoder")
    add("--data", type=Path, help="folder with the datasets' files")
    add("--runs", type=Path, default=Path(f"runs/{name}"), help="fine-tuned models")
    add("--results", type=Path, default=RESULTS)
    add("--summary", action="store_true", help="only means and bars of what is there")
    add("--check", action="store_true", help="exit 1 if a bar is missed")
    return result
