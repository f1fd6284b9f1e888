"""Studies: tasks x methods x seeds, one JSON file per finished (recipe, seed).

A study file names recipes, what is changed in all of them, the seeds, and the methods: each a
set of changes to the recipe, so that whatever a recipe can say is a method.

    name: indonlu
    recipes: [indonlu/emot.yaml, indonlu/smsa.yaml]
    seeds: [0, 1, 2]
    changes: {model: my-model}
    methods: {w8a8: {weights.bits: 8}}

A method is scored on its exported file. One whose recipe has the slot `qat` is trained; with its
`control`, the unit's file has the score of the float model trained on, too. One with
`activations.scope: all`, which cannot be exported, is scored on the simulation in torch, and has
no size.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from quantkit import pipeline, qat_line
from quantkit.answers import decisions
from quantkit.batching import encode_unlabelled
from quantkit.calibration_texts import calibration_batches, word_counts
from quantkit.checkpoint import length_limit, load_float, reachable_rows, takes_token_types
from quantkit.config import STRICT
from quantkit.data import TaskData, inputs_of, load_task, references_of
from quantkit.data.naming import unknown
from quantkit.encoder import head_of
from quantkit.errors import RecipeError
from quantkit.files import read_json, write_json
from quantkit.heads import Head
from quantkit.measure import environment
from quantkit.metrics import MAIN, Answers, agreement, bootstrap, paired_bootstrap, statistics
from quantkit.onnx_file import file_bytes, find_onnx
from quantkit.prediction import Outputs, predict
from quantkit.recipe import Recipe, load_recipe, read_yaml, with_changes
from quantkit.runs import Run
from quantkit.runtime import load
from quantkit.simulation import simulate
from quantkit.tokenization import Inputs
from quantkit.trim import trim_to_corpus

__all__ = [
    "Study",
    "load_study",
    "method_scores",
    "run_study",
    "shareable",
    "study_rows",
    "unit_file",
]

Changes = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of files and folders
SCHEMA = 1
LONGER = "float, trained on"


@dataclass(frozen=True, config=STRICT)
class Study:
    """What is compared; `float`, the fine-tuned model itself, is always the first method."""

    name: Name
    recipes: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    changes: Changes = Field(default_factory=dict)
    methods: dict[Name, Changes] = Field(default_factory=dict)

    def recipe(self, source: str, seed: int, changes: Mapping[str, Any]) -> Recipe:
        """The recipe of one unit."""
        values = {**self.changes, **changes, "finetune.seed": seed}
        return with_changes(load_recipe(source), values)

    def method(self, recipe: Recipe, name: str) -> Recipe:
        """The recipe of one method of a unit; what it trains has the unit's seed."""
        changed = with_changes(recipe, self.methods[name])
        if changed.qat is None:
            return changed
        return with_changes(changed, {"qat.seed": recipe.finetune.seed})


_ADAPTER: TypeAdapter[Study] = TypeAdapter(Study)


def load_study(path: str | Path, changes: Mapping[str, Any]) -> Study:
    """Read a study file, or a shipped one by its name; `changes` are added to its own.

    Every recipe of every unit and method is resolved, so that a mistake shows now and not
    after hours.

    Raises:
        RecipeError: not a study, a recipe or a change in it that does not fit, or two recipes
            of one name.
    """
    values, source = read_yaml(path)
    try:
        study = _ADAPTER.validate_python(values)
    except ValidationError as problem:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in problem.errors()]
        raise RecipeError("\n".join(f"{source}: {line}" for line in lines)) from None
    if "float" in study.methods:
        raise RecipeError(f"{source}: methods.float is always there. Remove it from `methods`.")
    merged = {**asdict(study), "changes": {**study.changes, **changes}}
    study = _ADAPTER.validate_python(merged)
    _check(study, source)
    return study


def _check(study: Study, source: str) -> None:
    """Resolve the recipe of every unit and method."""
    seen: dict[str, str] = {}
    for file in study.recipes:
        for seed in study.seeds:
            base = study.recipe(file, seed, {})
            for method in study.methods:
                study.method(base, method)
        if base.name in seen:
            raise RecipeError(
                f"{source}: {seen[base.name]} and {file} both have the name {base.name}, by "
                f"which results are told apart. Give one of them another."
            )
        if base.is_recurrent and study.methods:
            raise RecipeError(
                f"{source}: {file} is a recurrent baseline, which is not quantized. Put it into "
                f"a study without methods."
            )
        seen[base.name] = file


def unit_file(study: Study, recipe: str, seed: int, results: Path) -> Path:
    """Where a unit's result lies; `recipe` is the name in the recipe file."""
    return results / f"{study.name}_{recipe}_{seed}.json"


def run_study(
    study: Study,
    results: Path,
    runs: Path,
    data: Path | None,
    *,
    only: Sequence[str] = (),
    say: Callable[[str], None],
) -> None:
    """Make every unit that has no result yet; an interrupted one continues where it was.

    Args:
        study: what to run.
        results: where the units' JSON files are and go.
        runs: where models are while a unit is in work; removed when its result is written.
        data: the datasets' folder.
        only: names of recipes to restrict the study to.
        say: told which unit begins.

    Raises:
        RecipeError: `only` names a recipe that the study has not.
    """
    names = _names(study)
    for name in only:
        if name not in names:
            raise RecipeError(unknown("recipe", name, names))
    for source in study.recipes:
        for seed in study.seeds:
            recipe = study.recipe(source, seed, {})
            target = unit_file(study, recipe.name, seed, results)
            if target.is_file() or (only and recipe.name not in only):
                continue
            say(f"{recipe.name}, seed {seed}")
            run = Run(runs / study.name / f"{recipe.name}-{seed}")
            write_json(target, _unit(study, recipe, run, data))
            shutil.rmtree(run.folder)


def _names(study: Study) -> list[str]:
    return [study.recipe(source, study.seeds[0], {}).name for source in study.recipes]


def _unit(study: Study, recipe: Recipe, run: Run, data: Path | None) -> dict[str, Any]:
    """Fine-tune once, make every method from it, score all of them on the test split."""
    if not run.complete:
        pipeline.finetune(recipe, run, data, resume=True)
    task = load_task(recipe.task, data, recipe.data)
    test = task.splits["test"]
    references = references_of(test, task.head)
    if not (run.float_folder / "onnx" / "model.onnx").is_file():
        pipeline.export_float(run.float_folder, recipe)
    outputs = {"float": load(run.float_folder).outputs(inputs_of(test, task.head))}
    scores = {
        "float": method_scores(task.head, references, outputs["float"], None, run.float_folder)
    }
    seconds = {}
    for method in study.methods:
        started = time.perf_counter()
        changed = study.method(recipe, method)
        folder = None if _is_simulated(changed) else run.folder / method
        answers = _answers(changed, run, folder, task, data)
        scores[method] = method_scores(task.head, references, answers, outputs["float"], folder)
        seconds[method] = time.perf_counter() - started
    if run.longer_folder.is_dir():
        longer = run.longer_folder
        if not (longer / "onnx" / "model.onnx").is_file():
            pipeline.export_float(longer, recipe)
        answers = load(longer).outputs(inputs_of(test, task.head))
        scores[LONGER] = method_scores(task.head, references, answers, outputs["float"], longer)
    training = {k: v for k, v in run.training().items() if k != "curve"}
    return {
        "schema": SCHEMA,
        "study": study.name,
        "recipe_name": recipe.name,
        "task": recipe.task,
        "seed": recipe.finetune.seed,
        "main": MAIN[task.head.kind],
        "test_rows": len(test),
        "recipe": shareable(recipe),
        "methods": {name: study.methods[name] for name in study.methods},
        "scores": scores,
        "method_seconds": seconds,
        "training": training,
        "environment": environment(),
    }


def shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as results hold it: a model in a folder by that folder's name alone."""
    model = Path(recipe.model)
    return asdict(recipe) | ({"model": model.resolve().name} if model.is_dir() else {})


def _is_simulated(recipe: Recipe) -> bool:
    return recipe.activations.scope == "all"


def _answers(
    recipe: Recipe, run: Run, folder: Path | None, task: TaskData, data: Path | None
) -> Outputs:
    """One method's outputs on the test rows: of its file in `folder`, or simulated without one."""
    train, test = (inputs_of(task.splits[split], task.head) for split in ("train", "test"))
    if folder is None:
        return _simulated(recipe, run.float_folder, train, test)
    if not folder.is_dir() and recipe.qat is not None:
        qat_line.qat(recipe, run, data, folder=folder, resume=True)
    elif not folder.is_dir():
        pipeline.ptq_checkpoint(recipe, run.float_folder, train, folder)
    return load(folder).outputs(test)


def _simulated(recipe: Recipe, checkpoint: Path, train: Inputs, test: Inputs) -> Outputs:
    """Outputs on `test` of the simulation, which is made as `pipeline.ptq_checkpoint` would."""
    model, tokenizer = load_float(checkpoint)
    if recipe.embeddings.trim == "corpus":
        trimmed = trim_to_corpus(model, tokenizer, train)
        model, tokenizer = trimmed.model, trimmed.tokenizer
    limit = length_limit(model, tokenizer, recipe.max_length)
    four_bits = recipe.embeddings.bits == 4
    simulated = simulate(
        model,
        calibration_batches(model, tokenizer, train, recipe, limit),
        recipe=recipe,
        reachable_rows=reachable_rows(tokenizer),
        word_counts=word_counts(model, tokenizer, train, limit) if four_bits else None,
    )
    types = takes_token_types(model)
    encoded = encode_unlabelled(tokenizer, test, head_of(model), limit, types=types)
    return predict(simulated.model, encoded, pad_token_id=int(tokenizer.pad_token_id or 0))


def method_scores(
    head: Head,
    references: Answers,
    outputs: Outputs,
    baseline: Outputs | None,
    folder: Path | None,
) -> dict[str, Any]:
    """One method's scores with intervals, its change against float, and its file's size, if any."""
    decided = decisions(head, outputs)
    found = statistics(head, references, decided)
    entry: dict[str, Any] = {name: asdict(bootstrap(s)) for name, s in found.items()}
    entry["bytes"] = None if folder is None else file_bytes(find_onnx(folder))
    if baseline is not None:
        others = decisions(head, baseline)
        main = MAIN[head.kind]
        before = statistics(head, references, others)[main]
        entry["change"] = asdict(paired_bootstrap(before, found[main]))
        entry["agreement"] = agreement(head, others, decided)
    return entry


def study_rows(study: Study, results: Path) -> list[str]:
    """The lines of a Markdown table: a row per recipe, the mean over seeds, drops against float.

    Units that are not done are left out; a recipe without any has no row. A method that is
    scored on a simulation, and not on a file, says so.
    """
    methods = ["float", *study.methods]
    first = study.recipe(study.recipes[0], study.seeds[0], {})
    simulated = {name for name in study.methods if _is_simulated(study.method(first, name))}
    titles = [f"{name} (simulated)" if name in simulated else name for name in study.methods]
    head = ["recipe", "score", "seeds", "float, %"]
    head += [f"{title}: {what}" for title in titles for what in ("%", "change", "labels equal, %")]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * (len(head) - 2)}"]
    rows = {}
    for name in _names(study):
        files = [unit_file(study, name, seed, results) for seed in study.seeds]
        units = [read_json(file) for file in files if file.is_file()]
        if units:
            rows[name] = _row(units, methods)
            cells = [name, units[0]["main"], str(len(units)), *_cells(rows[name])]
            lines.append(f"| {' | '.join(cells)} |")
    if len(rows) > 1:
        mean = np.mean(list(rows.values()), axis=0)
        lines.append(f"| {' | '.join(['mean', '', '', *_cells(mean)])} |")
    return lines


def _row(units: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> np.ndarray:
    """Float's score, then for each method score, change and agreement; means over the units."""
    main = units[0]["main"]
    rows = []
    for unit in units:
        scores = unit["scores"]
        row = [scores["float"][main]["value"]]
        for method in methods[1:]:
            entry = scores.get(method)
            row += (
                [np.nan] * 3
                if entry is None
                else [entry[main]["value"], entry["change"]["value"], entry["agreement"]]
            )
        rows.append(row)
    return np.asarray(np.mean(rows, axis=0))


def _cells(row: np.ndarray) -> list[str]:
    """Percentages; every third number behind the first is a change, with its sign."""
    values = 100 * row
    cells = [f"{values[0]:.1f}"]
    for at, value in enumerate(values[1:]):
        cells.append(f"{value:+.2f}" if at % 3 == 1 else f"{value:.1f}")
    return cells
