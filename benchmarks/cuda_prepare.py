"""What GPU jobs are given beforehand, and what is made of their answers afterwards.

    python benchmarks/cuda_prepare.py tokens smsa --model M --data D --out smsa.safetensors
    python benchmarks/cuda_prepare.py study STUDY.yaml --model M --data D --out P
    python benchmarks/cuda_prepare.py score --prepared P --work W --results R

Datasets are read and answers are scored here; the GPU's machine has neither datasets nor a network.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cuda_tokens import load_encoded, save_encoded

from quantkit.checkpoint import length_limit, load_for_training
from quantkit.data import load_task
from quantkit.files import read_json, write_json
from quantkit.recipe import Recipe, load_recipe
from quantkit.study import load_study, method_scores
from quantkit.training_rows import encoded_split
from quantkit.worker import read_outputs


def main(arguments: Sequence[str] | None = None) -> int:
    """One of the three steps."""
    options = _options(arguments)
    {"tokens": _tokens, "study": _study, "score": _score}[options.step](options)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prepare GPU jobs, and score their answers.")
    steps = parser.add_subparsers(dest="step", required=True)
    for name, first in (("tokens", "task"), ("study", "file")):
        step = steps.add_parser(name)
        step.add_argument(first)
        step.add_argument("--model", required=True, help="folder of the encoder")
        step.add_argument("--data", type=Path, required=True, help="folder of the datasets")
        step.add_argument("--out", type=Path, required=True)
        if name == "tokens":
            step.add_argument("--split", default="test")
            step.add_argument("--max-length", type=int)
    score = steps.add_parser("score")
    for name in ("prepared", "work", "results"):
        score.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args(arguments)


def _tokens(options: argparse.Namespace) -> None:
    """One split of a task."""
    task = load_task(options.task, options.data)
    model, tokenizer = load_for_training(options.model, task.head)
    limit = length_limit(model, tokenizer, options.max_length)
    save_encoded(encoded_split(task, options.split, model, tokenizer, limit), options.out)


def _study(options: argparse.Namespace) -> None:
    """All rows of a study's tasks, and the resolved recipe of every unit and method."""
    study = load_study(options.file, {})
    recipes: dict[str, dict[str, dict[str, Any]]] = {}
    for source in study.recipes:
        base = load_recipe(source)
        recipes[base.name] = {}
        for seed in study.seeds:
            recipe = study.recipe(source, seed, {})
            known = {"float": asdict(recipe)}
            known |= {name: asdict(study.method(recipe, name)) for name in study.methods}
            recipes[base.name][str(seed)] = known
        _rows(base, options)
    about = {"study": study.name, "seeds": list(study.seeds), "methods": list(study.methods)}
    write_json(options.out / "study.json", {**about, "recipes": recipes})


def _rows(recipe: Recipe, options: argparse.Namespace) -> None:
    task = load_task(recipe.task, options.data, recipe.data)
    model, tokenizer = load_for_training(options.model, task.head)
    limit = length_limit(model, tokenizer, recipe.max_length)
    for split in ("train", "validation", "test"):
        encoded = encoded_split(task, split, model, tokenizer, limit)
        save_encoded(encoded, options.out / recipe.name / f"{split}.safetensors")


def _score(options: argparse.Namespace) -> None:
    """One JSON file per unit, of the methods that are done."""
    study = read_json(options.prepared / "study.json")
    for recipe in study["recipes"]:
        test = load_encoded(options.prepared / recipe / "test.safetensors")
        references: Any = test.references()
        for seed in study["seeds"]:
            folder = options.work / f"{recipe}-{seed}"
            files = sorted(folder.glob("[!.]*.npz"))
            outputs = {file.stem: read_outputs(file) for file in files}
            if "float" not in outputs:
                continue
            scores = {
                name: method_scores(
                    test.head,
                    references,
                    found,
                    None if name == "float" else outputs["float"],
                    None,
                )
                for name, found in outputs.items()
            }
            training = {
                file.name.removesuffix("-training.json"): read_json(file)
                for file in folder.glob("*-training.json")
            }
            write_json(
                options.results / f"{study['study']}_{recipe}_{seed}.json",
                {"recipe": recipe, "seed": seed, "scores": scores, "training": training},
            )


if __name__ == "__main__":
    sys.exit(main())
