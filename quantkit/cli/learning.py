"""Commands that train beyond fine-tuning: qat and distill."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.app import app
from quantkit.cli.options import (
    RUNS,
    Data,
    Model,
    Name,
    Overwrite,
    RecipeArgument,
    Resume,
    Runs,
    Set,
    changes_of,
    recipe_of,
    run_named,
    say,
    say_next,
    say_predict,
)
from quantkit.cli.progress import progress
from quantkit.cli.steps import finetune_and_say, resolved, run_and_recipe, say_quantized

if TYPE_CHECKING:
    from quantkit.qat_line import TrainedFolder
    from quantkit.recipe import Recipe
    from quantkit.runs import Run
    from quantkit.train import TrainingResult

__all__ = ["distill", "qat"]


@app.command()
def qat(
    source: Annotated[
        str, typer.Argument(help="A recipe file, or a run's name; default: the latest run.")
    ] = "",
    bits: Annotated[
        int | None, typer.Option(help="Bits of the weights, 8 or 4; default: the recipe's.")
    ] = None,
    model: Model = "",
    data: Data = None,
    runs: Runs = RUNS,
    name: Name = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Set = None,
) -> None:
    """Quantization-aware training: quantize, train further with a teacher, end packed."""
    from quantkit import qat_line

    if source.endswith((".yaml", ".yml")):
        recipe = resolved(recipe_of(source, model, {}), bits, changes)
        run = run_named(runs, name or recipe.name)
    else:
        run, recipe = _run_to_train(source, runs, bits, changes)
    recipe = qat_line.with_qat(recipe)  # before any work: do its slots fit together?
    if not run.complete:
        finetune_and_say(recipe, run, data, resume, overwrite)
    with progress() as report:
        made = qat_line.qat(
            recipe,
            run,
            data or run.data(),
            resume=resume,
            overwrite=overwrite,
            progress=report,
        )
    if made is not None:  # of several processes one speaks
        _say_trained(made)
        say_predict(made.folder)
        say_next(f"quantkit bench {run.folder.name}")


@app.command()
def distill(
    recipe: RecipeArgument = "builtin.yaml",
    model: Model = "",
    data: Data = None,
    runs: Runs = RUNS,
    name: Name = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Set = None,
) -> None:
    """Train a half-depth student of a fine-tuned model, which is made first if need be."""
    from quantkit import distill_line, pipeline

    chosen = recipe_of(recipe, model, changes_of(changes))
    run = run_named(runs, name or chosen.name)
    student = distill_line.student_run(run)
    if not overwrite:
        student.refuse_if_there(resume=resume)
    if distill_line.needs_float(chosen) and not run.complete:
        finetune_and_say(chosen, run, data, resume, overwrite)
    source = data or (run.data() if run.complete else None)
    result = distill_line.distill(chosen, run, source, resume=resume, overwrite=overwrite)
    if pipeline.is_main_process():
        say(f"Distilled a student on {chosen.task}: {_outcome(result)}")
        say(f"Checkpoint: {student.float_folder}")
        say_next(f"quantkit ptq {student.folder.name}")
        if run.complete:
            say_next(f"quantkit bench {student.folder.name} --beside {run.folder.name}")


def _run_to_train(
    name: str, runs: Path, bits: int | None, changes: list[str] | None
) -> tuple["Run", "Recipe"]:
    """The run and its recipe; of one that is quantized already, what that was made by."""
    from quantkit.qat_line import recorded_recipe

    run, recipe = run_and_recipe(name, runs, "", None, bits)
    return run, resolved(recorded_recipe(run.quantized_folder(recipe)) or recipe, None, changes)


def _say_trained(made: "TrainedFolder") -> None:
    say(
        f"Trained on from {100 * made.before:.1f} % of the validation rows' score: "
        f"{_outcome(made.training)}"
    )
    check = made.check
    say(
        f"Test {check.score}, {check.rows} rows: the file {100 * check.file:.2f} %, the trained "
        f"model {100 * check.model:.2f} %; {100 * check.labels_equal:.2f} % of labels equal."
    )
    say_quantized(made)


def _outcome(result: "TrainingResult") -> str:
    return (
        f"validation score {100 * result.best_score:.1f} % in epoch {result.best_epoch}, "
        f"{result.steps} steps, {result.seconds:.0f} s."
    )
