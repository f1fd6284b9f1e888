"""Commands that train beyond fine-tuning: distill."""

from typing import TYPE_CHECKING

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
)
from quantkit.cli.steps import finetune_and_say

if TYPE_CHECKING:
    from quantkit.train import TrainingResult

__all__ = ["distill"]


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


def _outcome(result: "TrainingResult") -> str:
    return (
        f"validation score {100 * result.best_score:.1f} % in epoch {result.best_epoch}, "
        f"{result.steps} steps, {result.seconds:.0f} s."
    )
