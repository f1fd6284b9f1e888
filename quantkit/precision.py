"""The verbs of sensitivity and of mixed precision, for runs and for any checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from quantkit import pipeline
from quantkit.closeness import Closeness
from quantkit.data import inputs_of, load_task
from quantkit.errors import RecipeError
from quantkit.files import refuse_existing
from quantkit.mixed_precision import Mixed
from quantkit.ptq import Progress
from quantkit.recipe import Recipe
from quantkit.runs import Run
from quantkit.sensitivity import Sensitivity
from quantkit.tokenization import Inputs
from quantkit.workbench import Material, Workbench

__all__ = ["Within", "check_budget", "ptq_within", "run_sensitivity", "sensitivity_file"]


@dataclass(frozen=True)
class Within:
    """A packed checkpoint that was searched for.

    Attributes:
        mixed: what was found.
        recipe: that makes it.
        made: where it lies.
        closeness: of the packed model itself to the float model.
    """

    mixed: Mixed
    recipe: Recipe
    made: pipeline.QuantizedFolder
    closeness: Closeness


def run_sensitivity(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    *,
    rows: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure what each unit of a run's model loses; write `sensitivity_file`.

    A killed analysis goes on where it was; a finished one of the same model, recipe and rows is
    not made again.

    Args:
        recipe: how units are quantized.
        run: whose model.
        data: the dataset's folder.
        rows: at most so many validation rows and training texts; default: 256 and 1,000.
        progress: told what is done, how many are done, and of how many.

    Raises:
        RecipeError: a recurrent baseline.
        DataError: rows without labels, or of another task than the model's.
    """
    bench = Workbench(_of_run(recipe, run, data), rows=rows, progress=progress)
    found = bench.sensitivity()
    bench.close()
    return found


def sensitivity_file(recipe: Recipe, run: Run) -> Path:
    """Where a run's analysis lies."""
    return run.folder / f"sensitivity-{run.quantized_folder(recipe).name}.json"


def ptq_within(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    max_drop: float,
    *,
    checkpoint: Path | None = None,
    texts: Inputs | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Within:
    """Find the smallest model within a budget; write it as packed checkpoint and ONNX.

    Args:
        recipe: how the model is quantized where the budget allows it.
        run: where the result lies.
        data: the dataset's folder.
        max_drop: points of the main score on the task, above 0.
        checkpoint: a float model's folder; default: the run's own.
        texts: to calibrate on; default: the task's training rows.
        overwrite: replace the quantized folder if it is there.
        progress: told what is done, how many are done, and of how many.

    Raises:
        RecipeError: a budget that is not above 0, or a recurrent baseline.
        OutputExistsError: the quantized folder exists.
        DataError: no task, rows without labels, or of another task than the model's.
        ParityError: the exported file failed the gate; nothing is kept.
    """
    check_budget(max_drop)
    folder = run.quantized_folder(recipe)
    if not overwrite:
        refuse_existing(folder)
    material = _of_run(recipe, run, data, checkpoint, texts)
    bench = Workbench(material, progress=progress)
    mixed, answers = bench.search(max_drop)
    found = mixed.recipe(recipe)
    made = pipeline.ptq_checkpoint(
        found,
        material.checkpoint,
        material.calibration,
        folder,
        held_out=inputs_of(material.task.splits["validation"], material.task.head),
        overwrite=overwrite,
        notes=(*mixed.notes(answers), *_left_out(recipe)),
        progress=progress,
    )
    bench.close()
    return Within(mixed, found, made, answers.closeness(made.quantized.model))


def check_budget(max_drop: float) -> None:
    """Refuse a budget that no quantized model can be held to.

    Raises:
        RecipeError: it is not above 0.
    """
    if not 0 < max_drop < 100:
        raise RecipeError(
            f"--max-drop is {max_drop:g}: it is how many points of 100 the main score may fall, "
            f"above 0, e.g. --max-drop 0.5. Without it the whole model has the recipe's bits."
        )


def _left_out(recipe: Recipe) -> tuple[str, ...]:
    """What the model has and the mixtures had not."""
    if recipe.compensation is None:
        return ()
    return ("The mixtures were measured without compensation, which this model has besides.",)


def _of_run(
    recipe: Recipe,
    run: Run,
    data: Path | None,
    checkpoint: Path | None = None,
    texts: Inputs | None = None,
) -> Material:
    pipeline.refuse_recurrent(recipe, run)
    if recipe.task == "none":
        raise RecipeError(
            f"A drop of a score is measured on validation rows with labels, and {checkpoint} "
            f"belongs to no task. Name one: --recipe RECIPE, and --data FOLDER if it is not "
            f"downloaded; or leave --max-drop out."
        )
    task = load_task(recipe.task, data, recipe.data)
    return Material(
        recipe,
        checkpoint or run.float_folder,
        texts or inputs_of(task.splits["train"], task.head),
        task,
        run.folder / sensitivity_file(recipe, run).stem,
    )
