"""Tasks x methods x seeds on one GPU, on a machine with neither datasets nor a network.

    python benchmarks/cuda_prepare.py study benchmarks/studies/cuda.yaml --model M --data D --out P
    python benchmarks/cuda_study.py --prepared P --model M --work W      # again until it says done
    python benchmarks/cuda_prepare.py score --prepared P --work W --results R

A unit is one recipe and seed: float, a student of half the layers, and each method by PTQ and by
QAT. Several units run at once, each in its own process. A method that is done is a file with the
answers on the test rows; training goes on from its last saved state.

Of quantkit's `train` dependencies it needs all but datasets and evaluate. What a machine lacks is
carried there as a folder for PYTHONPATH:

    pip install --target packages --no-deps --only-binary :all: --python-version 3.12
        --platform manylinux2014_x86_64
        pydantic pydantic-core annotated-types typing-inspection rich
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_tokens import load_encoded
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.answers import decisions
from quantkit.batching import Encoded, collate, equal_length_batches
from quantkit.checkpoint import (
    load_float,
    load_for_training,
    padding_of,
    reachable_rows,
    save_float,
)
from quantkit.files import new_folder, read_json, write_json
from quantkit.method import Method
from quantkit.metrics import main_score
from quantkit.prediction import predict
from quantkit.ptq import Quantized, quantize
from quantkit.qat import pack, prepare
from quantkit.qat_method import qat_method
from quantkit.recipe import Qat, Recipe, parse_recipe
from quantkit.student import every_second_layer
from quantkit.train import finetune
from quantkit.training_slots import Training
from quantkit.worker import write_outputs

SPLITS = ("train", "validation", "test")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run units until the time is up, or be one of them."""
    options = _options(arguments)
    if options.unit:
        _unit(options.unit[0], options.unit[1], options)
        return 0
    waiting = [unit for unit in _units(options.prepared) if not _done(options, *unit)]
    running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
    end, failed = time.monotonic() + 60 * options.minutes, []
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < options.processes:
            unit = waiting.pop(0)
            running[unit] = _start(unit, options)
        time.sleep(1)
        for unit, process in list(running.items()):
            if process.poll() is not None:
                failed += [unit] if process.returncode else []
                del running[unit]
    for process in running.values():
        process.kill()  # what it has saved, the next run goes on from
        process.wait()
    left = sum(not _done(options, *unit) for unit in _units(options.prepared))
    print("Done." if not left else f"{left} units are left. Run the same command again.")
    for recipe, seed in failed:
        print(f"{recipe}, seed {seed}, failed: see {options.work / f'{recipe}-{seed}' / 'log.txt'}")
    return int(bool(failed))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A study on a GPU from prepared tokens.")
    add = parser.add_argument
    add("--prepared", type=Path, required=True, metavar="DIR", help="by cuda_prepare.py study")
    add("--model", required=True, metavar="DIR", help="the pretrained encoder")
    add("--work", type=Path, required=True, metavar="DIR")
    add("--processes", type=int, default=5, help="units at once (%(default)s)")
    add("--minutes", type=float, default=9.5, help="of this run (%(default)s)")
    add("--unit", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _units(prepared: Path) -> list[tuple[str, str]]:
    study = read_json(prepared / "study.json")
    return [(name, str(seed)) for seed in study["seeds"] for name in study["recipes"]]


def _methods(prepared: Path) -> list[str]:
    study = read_json(prepared / "study.json")
    trained = [f"{name}-{kind}" for name in study["methods"] for kind in ("ptq", "qat")]
    return ["float", "student", *trained]


def _done(options: argparse.Namespace, recipe: str, seed: str) -> bool:
    folder = options.work / f"{recipe}-{seed}"
    return all((folder / f"{name}.npz").is_file() for name in _methods(options.prepared))


def _start(unit: tuple[str, str], options: argparse.Namespace) -> "subprocess.Popen[bytes]":
    folder = options.work / "-".join(unit)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--prepared", str(options.prepared), "--model"]
    command += [options.model, "--work", str(options.work), "--unit", *unit]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


class _Unit:
    """One recipe and seed: its rows, its folder, and what is made in it."""

    def __init__(self, name: str, seed: int, options: argparse.Namespace) -> None:
        source = options.prepared / name
        self.rows = {split: load_encoded(source / f"{split}.safetensors") for split in SPLITS}
        self.head = self.rows["train"].head
        self.folder = options.work / f"{name}-{seed}"
        self.encoder, self.seed = options.model, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def score(self, references: Any, outputs: Any) -> float:  # noqa: ANN401
        """Of validation rows."""
        return main_score(self.head, references, decisions(self.head, outputs))

    def train(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Training,
        method: Method | None = None,
    ) -> None:
        """Train in place, from the last saved state if there is one; keep what it took."""
        result = finetune(
            model,
            self.rows["train"],
            self.rows["validation"],
            settings,
            pad_token_id=padding_of(tokenizer),
            score=self.score,
            state_folder=self.folder / f"{name}-training",
            method=method,
            resume=True,
        )
        write_json(self.folder / f"{name}-training.json", asdict(result))

    def answer(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the answers on the test rows, which marks the method as done."""
        outputs = predict(
            _moved(model, self.device), self.rows["test"], pad_token_id=padding_of(tokenizer)
        )
        partial = self.folder / f".{name}.npz"
        write_outputs(partial, outputs)
        partial.rename(self.folder / f"{name}.npz")

    def missing(self, name: str) -> bool:
        """Whether a method is still to be done."""
        return not (self.folder / f"{name}.npz").is_file()


def _unit(name: str, seed: str, options: argparse.Namespace) -> None:
    """All that is missing of one unit."""
    unit, study = _Unit(name, int(seed), options), read_json(options.prepared / "study.json")
    known = study["recipes"][name][seed]
    base = parse_recipe(known["float"], f"{name} in study.json")
    _float(unit, base, "float", lambda model: model)
    _float(unit, base, "student", every_second_layer)
    for method in study["methods"]:
        recipe = parse_recipe(known[method], f"{name}, {method}, in study.json")
        if unit.missing(f"{method}-ptq") or unit.missing(f"{method}-qat"):
            _quantized(unit, recipe, method)


def _float(
    unit: _Unit,
    recipe: Recipe,
    name: str,
    change: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    """Fine-tune the encoder, or a student begun from it."""
    if not unit.missing(name):
        return
    torch.manual_seed(unit.seed)  # the fresh head is part of the result
    model, tokenizer = load_for_training(unit.encoder, unit.head)
    model = change(model)
    unit.train(name, model, tokenizer, recipe.finetune)
    with new_folder(unit.folder / f"{name}-model", overwrite=True) as partial:
        save_float(model, tokenizer, partial)
    unit.answer(name, model, tokenizer)


def _quantized(unit: _Unit, recipe: Recipe, method: str) -> None:
    """Quantize the float model after training, then train it further."""
    model, tokenizer = load_float(unit.folder / "float-model")
    made = _ptq(unit, recipe, model, tokenizer)
    if unit.missing(f"{method}-ptq"):
        unit.answer(f"{method}-ptq", made.model, tokenizer)
        _moved(made.model, "cpu")
    if unit.missing(f"{method}-qat"):
        slot = recipe.qat or Qat(seed=unit.seed, precision="auto")
        trained = prepare(model, made, slot.scales)
        teacher, validation = _moved(model, unit.device), unit.rows["validation"]
        how = qat_method(trained, teacher, made, tokenizer, unit.head, slot, validation)
        unit.train(f"{method}-qat", trained, tokenizer, slot.shared(), how)
        unit.answer(f"{method}-qat", pack(_moved(trained, "cpu"), made).model, tokenizer)


def _ptq(
    unit: _Unit, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Quantized:
    train = unit.rows["train"]
    rows = reachable_rows(tokenizer)
    counts = np.zeros(rows, np.int64)
    for at in range(len(train)):
        counts += np.bincount(train.ids[at], minlength=rows)
    return quantize(
        model,
        _calibration(train, recipe, padding_of(tokenizer)),
        recipe=recipe,
        reachable_rows=rows,
        word_counts=torch.from_numpy(counts) if recipe.embeddings.bits == 4 else None,
    )


def _calibration(train: Encoded, recipe: Recipe, padding: int) -> Iterator[dict[str, Any]]:
    """A random sample of windows in batches of one length, without labels."""
    order = np.random.default_rng(recipe.calibration.seed).permutation(len(train))
    chosen = order[: recipe.calibration.samples]
    for places in equal_length_batches(train.lengths()[chosen], 16):
        batch = collate(train, chosen[places].tolist(), padding)
        batch.pop("labels")
        yield batch


def _moved(model: Any, device: torch.device | str) -> PreTrainedModel:  # noqa: ANN401
    moved: PreTrainedModel = model.to(device)
    return moved


if __name__ == "__main__":
    sys.exit(main())
