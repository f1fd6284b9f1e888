"""The verbs: each takes a recipe and places, does one step, and returns what it made.

No printing here beyond progress; the command line says where results lie.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.calibration_texts import calibration_batches, read_inputs
from quantkit.checkpoint import (
    length_limit,
    load_float,
    save_float,
)
from quantkit.data import TaskData, inputs_of, load_task
from quantkit.errors import OutputExistsError, RecipeError
from quantkit.exporter import Exported, export, export_path
from quantkit.files import new_folder
from quantkit.onnx_file import Target, known_target
from quantkit.packed import METADATA, load_packed
from quantkit.ptq import LayerStore, Progress, Quantized
from quantkit.quantized_folder import (
    keep_findings,
    quantize_checkpoint,
    write_quantized,
)
from quantkit.recipe import Recipe
from quantkit.runs import Run
from quantkit.starting_point import starting_point
from quantkit.tokenization import Inputs
from quantkit.train import TrainingResult
from quantkit.train import finetune as train_model
from quantkit.training_rows import TrainingRows
from quantkit.training_setup import processes_of_run

__all__ = [
    "QuantizedFolder",
    "calibration_batches",
    "export_float",
    "export_folder",
    "finetune",
    "is_main_process",
    "keep_run",
    "make_room",
    "ptq",
    "ptq_checkpoint",
    "read_inputs",
    "refuse_recurrent",
    "shared_task",
]


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

    Under `accelerate launch` all processes train and the first one writes.

    Raises:
        OutputExistsError: the run exists, or was interrupted and neither flag is given.
        OSError: the run's folder cannot be made.
        DataError, CheckpointError: what the recipe names cannot be read.
    """
    if not overwrite:
        run.refuse_if_there(resume=resume)
    processes = processes_of_run()
    task = shared_task(recipe, data, processes)
    start = starting_point(recipe, task)
    limit = length_limit(start.model, start.tokenizer, recipe.max_length)
    make_room(run, processes, overwrite=overwrite)
    rows = TrainingRows.of(task, start.model, start.tokenizer, limit)
    result = train_model(
        start.model,
        rows.train,
        rows.validation,
        recipe.finetune,
        pad_token_id=rows.pad_token_id,
        score=rows.score,
        state_folder=run.training_folder,
        resume=resume,
        progress=progress,
        on_step=on_step,
    )
    if processes.is_main_process:
        notes = [*rows.notes(), *start.notes]
        keep_run(recipe, run, data, start.model, start.tokenizer, result, notes)
    processes.wait_for_everyone()
    return result


def shared_task(recipe: Recipe, data: Path | None, processes: PartialState) -> TaskData:
    """A recipe's task: one process downloads and reads it, the others find it done."""
    with processes.main_process_first():
        return load_task(recipe.task, data, recipe.data)


def make_room(run: Run, processes: PartialState, *, overwrite: bool) -> None:
    """Make a run's folder now, not after the first epoch; `overwrite` forgets its old training."""
    if overwrite and processes.is_main_process:
        shutil.rmtree(run.training_folder, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    processes.wait_for_everyone()


def keep_run(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    result: TrainingResult,
    notes: Sequence[str],
) -> None:
    """Write a trained float model as a run's; what was made of an earlier one goes."""
    with new_folder(run.float_folder, overwrite=True) as partial:
        save_float(model, tokenizer, partial)
    run.remove_derived()
    run.save(recipe, data, {**asdict(result), "notes": list(notes)})
    shutil.rmtree(run.training_folder, ignore_errors=True)


def ptq(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizedFolder:
    """Quantize a run's float model with its training rows; write packed checkpoint and ONNX.

    Raises:
        OutputExistsError: the quantized folder exists.
        ParityError: the exported file failed the gate; nothing is kept.
        RecipeError: a recurrent baseline, which is not quantized.
    """
    refuse_recurrent(recipe, run)
    task = load_task(recipe.task, data, recipe.data)
    train, validation = (inputs_of(task.splits[n], task.head) for n in ("train", "validation"))
    folder = run.quantized_folder(recipe)
    return ptq_checkpoint(
        recipe,
        run.float_folder,
        train,
        folder,
        held_out=validation,
        overwrite=overwrite,
        progress=progress,
    )


def refuse_recurrent(recipe: Recipe, run: Run) -> None:
    """Refuse to quantize a recurrent baseline.

    Raises:
        RecipeError: it is one.
    """
    if recipe.is_recurrent:
        raise RecipeError(
            f"{run.folder} is a recurrent baseline, and quantkit quantizes encoders. "
            f"quantkit bench {run.folder.name} measures it as it is."
        )


def ptq_checkpoint(
    recipe: Recipe,
    checkpoint: Path,
    inputs: Inputs,
    folder: Path,
    *,
    held_out: Inputs | None = None,
    overwrite: bool = False,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> QuantizedFolder:
    """Quantize any fine-tuned float checkpoint, calibrated on `inputs`, into `folder`.

    Finished layers are kept beside it until all is done: after a kill, the same call goes on.

    Args:
        recipe: how.
        checkpoint: its folder.
        inputs: texts as in training: a sample of them is calibrated on; all of them decide which
            word rows stay where the recipe says `trim: corpus`, and which keep 8 of 4 bits.
        folder: of the packed checkpoint and its ONNX file.
        held_out: other texts, on which a trimmed vocabulary is judged; see `trim_to_corpus`.
        overwrite: replace the folder if it is there.
        notes: what the packed folder is to say before its other notes.
        progress: told what is done, how many are done, and of how many.
    """
    store = LayerStore(folder.with_name(f".{folder.name}.layers"))
    with new_folder(folder, overwrite=overwrite) as partial:
        made = quantize_checkpoint(
            recipe, checkpoint, inputs, held_out=held_out, notes=notes, store=store, say=progress
        )
        exported = write_quantized(made, made.quantized, partial)
    store.clear()
    path = folder / exported.path.relative_to(partial)
    return QuantizedFolder(folder, made.quantized, replace(exported, path=path))


def export_folder(
    folder: Path,
    *,
    target: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a packed or float checkpoint folder in place, under `onnx/`.

    Args:
        folder: holds the checkpoint.
        target: where the file is to run; default: what a packed one's recipe says, or `cpu`.
        overwrite: replace an earlier file of the target.

    Raises:
        OutputExistsError: its ONNX file exists.
        CheckpointError: the folder holds no checkpoint, or one that the target cannot write.
        RecipeError: an unknown target.
    """
    wanted = None if target is None else known_target(target)
    if (folder / METADATA).is_file():
        loaded = load_packed(folder)
        model, tokenizer, recipe = loaded.model, loaded.tokenizer, loaded.recipe
        limit: int | None = loaded.max_length
    else:
        (model, tokenizer), recipe, limit = load_float(folder), None, None
    chosen = wanted or ("cpu" if recipe is None else recipe.export.target)
    path = export_path(model, folder, chosen)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Pass --overwrite to replace it.")
    exported = export(model, tokenizer, folder, target=chosen, recipe=recipe, max_length=limit)
    return keep_findings(exported, folder)


def export_float(folder: Path, recipe: Recipe | None, target: Target = "cpu") -> Exported:
    """Export a float checkpoint folder; `recipe` decides the longest text."""
    model, tokenizer = load_float(folder)
    limit = None if recipe is None else recipe.max_length
    exported = export(model, tokenizer, folder, target=target, recipe=recipe, max_length=limit)
    return keep_findings(exported, folder)


def is_main_process() -> bool:
    """Whether this process, of those that `accelerate launch` started, is the one that speaks."""
    return bool(processes_of_run().is_main_process)
