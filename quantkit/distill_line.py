"""The verb `distill`: from a fine-tuned model to a smaller student of the same task.

Sanh et al. 2019 (DistilBERT), section 3: the student begins with every second layer of its
teacher and learns from the teacher's answers as well as from the labels. Here the teacher is
fine-tuned already, so the student is a model of the task, and needs no corpus.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quantkit.checkpoint import length_limit, load_float
from quantkit.errors import RecipeError
from quantkit.method import plain
from quantkit.pipeline import keep_run, make_room, shared_task
from quantkit.ptq.resume import fingerprint
from quantkit.recipe import Distill, Recipe
from quantkit.runs import Run
from quantkit.starting_point import refuse_unlabelled
from quantkit.student import every_second_layer
from quantkit.teacher import DistillationLoss, check_teacher
from quantkit.train import TrainingResult, finetune
from quantkit.training_rows import TrainingRows
from quantkit.training_setup import processes_of_run
from quantkit.training_slots import SELF

__all__ = ["distill", "needs_float", "student_run"]

NOTE = (
    "The model is a student of {layers} layers: it began with every second layer of {teacher}, "
    "fine-tuned on the task, and learnt from its answers and from the labels."
)


def student_run(run: Run) -> Run:
    """Where the student of a run's model lies: an ordinary run beside it."""
    return Run(run.folder.with_name(f"{run.folder.name}-student"))


def needs_float(recipe: Recipe) -> bool:
    """Whether the teacher is the recipe's own fine-tuned model."""
    return (recipe.distill or Distill()).teacher == SELF


def distill(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train a student of a fine-tuned model; the run `student_run(run)` appears at the end.

    Under `accelerate launch` all processes train and the first one writes.

    Raises:
        OutputExistsError: the student exists, or was interrupted and neither flag is given.
        CheckpointError: the teacher is not there, or has no layers of its own to choose from.
        RecipeError: a teacher of another task, or a recurrent baseline.
    """
    if recipe.is_recurrent:
        raise RecipeError(
            "A recurrent baseline has no layers to choose from: quantkit distill takes encoders."
        )
    student = student_run(run)
    if not overwrite:
        student.refuse_if_there(resume=resume)
    slot = recipe.distill or Distill()
    settings = slot.training or recipe.finetune
    processes = processes_of_run()
    task = shared_task(recipe, data, processes)
    refuse_unlabelled(task)
    source = str(run.float_folder) if slot.teacher == SELF else slot.teacher
    teacher, tokenizer = load_float(source)
    check_teacher(source, teacher, tokenizer, task.head, tokenizer)
    model = every_second_layer(teacher)
    make_room(student, processes, overwrite=overwrite)
    limit = length_limit(model, tokenizer, recipe.max_length)
    rows = TrainingRows.of(task, model, tokenizer, limit)
    name = "finetune" if slot.training is None else "distill.training"
    method = replace(
        plain(model, task.head, settings, name),
        objective=DistillationLoss(model, teacher, task.head, slot.distillation),
        identity=fingerprint(repr(slot), teacher, ()),
    )
    result = finetune(
        model,
        rows.train,
        rows.validation,
        settings,
        pad_token_id=rows.pad_token_id,
        score=rows.score,
        state_folder=student.training_folder,
        method=method,
        resume=resume,
        progress=progress,
        on_step=on_step,
    )
    if processes.is_main_process:
        made_by = replace(recipe, name=student.folder.name, student=slot.student)
        note = NOTE.format(layers=model.config.num_hidden_layers, teacher=_named(slot, recipe))
        keep_run(made_by, student, data, model, tokenizer, result, [*rows.notes(), note])
    processes.wait_for_everyone()
    return result


def _named(slot: Distill, recipe: Recipe) -> str:
    return recipe.model if slot.teacher == SELF else slot.teacher
