"""The verbs: each takes a recipe and places, does one step, and returns what it made.

No printing here beyond progress; the command line says where results lie.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.batching import Encoded, collate, encode, equal_length_batches
from quantkit.calibration import Batch
from quantkit.checkpoint import (
    builtin_model,
    length_limit,
    load_float,
    load_for_training,
    reachable_rows,
    save_float,
)
from quantkit.data import TaskData, load_task
from quantkit.data.tokenizer import train_wordpiece
from quantkit.errors import DataError, OutputExistsError
from quantkit.exporter import Exported, export
from quantkit.exporter.inspect import bytes_by_component
from quantkit.files import new_folder, read_json, write_json
from quantkit.measure import environment, measure
from quantkit.metrics import macro_f1
from quantkit.packed import METADATA, load_packed, save_packed
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, recipe_hash
from quantkit.report import SCHEMA, Report, candidate_report
from quantkit.runs import Run
from quantkit.runtime import find_onnx
from quantkit.train import TrainingResult
from quantkit.train import finetune as train_model

__all__ = [
    "QuantizedFolder",
    "bench",
    "calibration_batches",
    "export_folder",
    "finetune",
    "ptq",
    "ptq_checkpoint",
    "read_texts",
]

STAND_IN = (
    "The built-in model (4 layers x 256, trained from scratch) on built-in generated data is a "
    "stand-in for IndoBERT: its figures say nothing about real text."
)
PARITY = "parity.json"  # the gate's findings, beside each ONNX file


@dataclass(frozen=True)
class QuantizedFolder:
    """A packed checkpoint with its verified ONNX file."""

    folder: Path
    quantized: Quantized
    exported: Exported


def finetune(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Fine-tune the recipe's model on its task; the run's `float` folder appears at the end.

    Raises:
        OutputExistsError: the run exists, or was interrupted and neither flag is given.
        DataError, CheckpointError: what the recipe names cannot be read.
    """
    if not (resume or overwrite):
        run.refuse_if_there()
    task = load_task(recipe.task, data)
    model, tokenizer = _starting_point(recipe, task)
    limit = length_limit(model, tokenizer, recipe.max_length)
    if overwrite:
        shutil.rmtree(run.training_folder, ignore_errors=True)
    result = train_model(
        model,
        _encoded(task, "train", tokenizer, limit),
        _encoded(task, "validation", tokenizer, limit),
        recipe.finetune,
        pad_token_id=_padding(tokenizer),
        classes=len(task.labels),
        score=_validation_score(len(task.labels)),
        state_folder=run.training_folder,
        resume=resume,
        progress=progress,
        on_step=on_step,
    )
    with new_folder(run.float_folder, overwrite=True) as partial:
        save_float(model, tokenizer, partial)
    run.remove_derived()
    run.save(recipe, data, asdict(result))
    shutil.rmtree(run.training_folder, ignore_errors=True)
    return result


def ptq(recipe: Recipe, run: Run, data: Path | None, *, overwrite: bool = False) -> QuantizedFolder:
    """Quantize a run's float model with its training texts; write packed checkpoint and ONNX.

    Raises:
        OutputExistsError: the quantized folder exists.
        ParityError: the exported file failed the gate; nothing is kept.
    """
    texts = load_task(recipe.task, data).splits["train"]["text"]
    folder = run.quantized_folder(recipe)
    return ptq_checkpoint(recipe, run.float_folder, list(texts), folder, overwrite=overwrite)


def ptq_checkpoint(
    recipe: Recipe,
    checkpoint: Path,
    texts: Sequence[str],
    folder: Path,
    *,
    overwrite: bool = False,
) -> QuantizedFolder:
    """Quantize any fine-tuned float checkpoint, calibrated on `texts`, into `folder`."""
    with new_folder(folder, overwrite=overwrite) as partial:
        model, tokenizer = load_float(checkpoint)
        limit = length_limit(model, tokenizer, recipe.max_length)
        quantized = quantize(
            model,
            calibration_batches(tokenizer, texts, recipe, limit),
            recipe=recipe,
            reachable_rows=reachable_rows(tokenizer),
        )
        save_packed(quantized, tokenizer, partial, max_length=limit)
        exported = export(
            quantized.model, tokenizer, partial, recipe=recipe, max_length=recipe.max_length
        )
        write_json(partial / PARITY, exported.parity.to_json())
    path = folder / exported.path.relative_to(partial)
    return QuantizedFolder(folder, quantized, replace(exported, path=path))


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], recipe: Recipe, max_length: int
) -> Iterator[Batch]:
    """The recipe's random sample of `texts`, in batches of one length each: no padding.

    Raises:
        DataError: no texts.
    """
    if not texts:
        raise DataError("There are no texts to calibrate on. 256 training texts do well.")
    generator = np.random.default_rng(recipe.calibration.seed)
    count = min(recipe.calibration.samples, len(texts))
    chosen = [texts[int(index)] for index in generator.permutation(len(texts))[:count]]
    encoded = encode(tokenizer, chosen, [0] * count, max_length)
    for indices in equal_length_batches([len(ids) for ids in encoded.input_ids], 16):
        yield collate(encoded, indices, _padding(tokenizer))


def export_folder(folder: Path, *, target: str = "cpu", overwrite: bool = False) -> Exported:
    """Export a packed or float checkpoint folder in place, under `onnx/`.

    Raises:
        OutputExistsError: its ONNX file exists.
        CheckpointError: the folder holds no checkpoint.
    """
    if target != "cpu":
        raise ValueError(f"unknown target {target!r}")
    packed = (folder / METADATA).is_file()
    path = folder / "onnx" / ("model_quantized.onnx" if packed else "model.onnx")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Pass --overwrite to replace it.")
    if packed:
        loaded = load_packed(folder)
        exported = export(
            loaded.model,
            loaded.tokenizer,
            folder,
            recipe=loaded.recipe,
            max_length=loaded.max_length,
        )
    else:
        exported = _export_float(folder, None)
    write_json(folder / PARITY, exported.parity.to_json())
    return exported


def bench(recipe: Recipe, run: Run, data: Path | None, *, threads: int | None = None) -> Report:
    """Measure the float and the quantized file on the full test set; write the report.

    Raises:
        CheckpointError: a file is missing.
        MeasurementError: a candidate's process failed.
    """
    task = load_task(recipe.task, data)
    model, tokenizer = load_float(run.float_folder)
    limit = length_limit(model, tokenizer, recipe.max_length)
    if not (run.float_folder / "onnx" / "model.onnx").is_file():
        exported = _export_float(run.float_folder, recipe)
        write_json(run.float_folder / PARITY, exported.parity.to_json())
    folders = {"float": run.float_folder, "int8": run.quantized_folder(recipe)}
    files = {name: find_onnx(folder) for name, folder in folders.items()}
    shapes = [(b, n) for b in recipe.bench.batches for n in recipe.bench.lengths if n <= limit]
    test = task.splits["test"]
    measured = measure(
        files,
        list(test["text"]),
        shapes=shapes,
        rounds=recipe.bench.rounds,
        repeats=recipe.bench.repeats,
        threads=threads,
    )
    references = np.asarray(test["label"])
    candidates = tuple(
        candidate_report(
            name,
            str(path.relative_to(run.folder)),
            measured[name],
            references,
            bytes_by_component(path),
            read_json(folders[name] / PARITY),
            None if name == "float" else measured["float"],
        )
        for name, path in files.items()
    )
    packed = read_json(folders["int8"] / METADATA)
    report = Report(
        schema=SCHEMA,
        name=run.folder.name,
        task=recipe.task,
        recipe=asdict(recipe),
        recipe_hash=recipe_hash(recipe),
        environment=environment(threads),
        test_rows=len(test),
        max_length=limit,
        seed=recipe.finetune.seed,
        trimmed_bytes=packed["trimmed_rows"] * model.config.hidden_size * 4,
        candidates=candidates,
        notes=(*_notes(recipe, task), *packed["notes"]),
    )
    report.save(run.folder)
    return report


def read_texts(path: Path) -> list[str]:
    """One text a line from a UTF-8 file, empty lines left out.

    Raises:
        DataError: no such file, not UTF-8, or no text in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file. --texts takes a file with one text a line."
        ) from None
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 ({problem.reason}). Convert it first.") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} holds no text. It needs at least one line.")
    return texts


def _starting_point(
    recipe: Recipe, task: TaskData
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if recipe.model != "builtin":
        torch.manual_seed(recipe.finetune.seed)  # the fresh head is part of the result
        return load_for_training(recipe.model, task.labels)
    tokenizer = train_wordpiece(task.splits["train"]["text"])
    torch.manual_seed(recipe.finetune.seed)
    return builtin_model(tokenizer, task.labels), tokenizer


def _encoded(
    task: TaskData, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded:
    rows = task.splits[split]
    return encode(tokenizer, rows["text"], rows["label"], max_length)


def _validation_score(classes: int) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(references: np.ndarray, predictions: np.ndarray) -> float:
        cells = np.bincount(references * classes + predictions, minlength=classes * classes)
        return float(macro_f1(cells.reshape(classes, classes)))

    return score


def _export_float(folder: Path, recipe: Recipe | None) -> Exported:
    model, tokenizer = load_float(folder)
    limit = None if recipe is None else recipe.max_length
    return export(model, tokenizer, folder, recipe=recipe, max_length=limit)


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id or 0)


def _notes(recipe: Recipe, task: TaskData) -> list[str]:
    return [*task.notes, *([STAND_IN] if recipe.model == "builtin" else [])]
