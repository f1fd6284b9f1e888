"""Commands that make models: finetune, ptq, export, run."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.app import app
from quantkit.cli.options import (
    RUNS,
    Data,
    Label,
    Model,
    Name,
    Overwrite,
    Question,
    RecipeArgument,
    Resume,
    RunArgument,
    Runs,
    Set,
    Target,
    Text,
    TextPair,
    Threads,
    Tokens,
    changes_of,
    newest_quantized,
    recipe_of,
    run_named,
    say,
    say_next,
    say_predict,
    table_of,
)
from quantkit.cli.progress import progress
from quantkit.cli.sensitivity import ptq_within_and_say
from quantkit.cli.steps import (
    finetune_and_say,
    measure_and_say,
    ptq_and_say,
    resolved,
    run_and_recipe,
    say_quantized,
)
from quantkit.errors import RecipeError

if TYPE_CHECKING:
    from quantkit.recipe import Recipe

__all__ = ["export", "finetune", "ptq", "run_line"]


@app.command()
def finetune(
    recipe: RecipeArgument = "builtin.yaml",
    model: Model = "",
    data: Data = None,
    text: Text = "",
    label: Label = "",
    text_pair: TextPair = "",
    tokens: Tokens = "",
    question: Question = "",
    runs: Runs = RUNS,
    name: Name = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Set = None,
) -> None:
    """Fine-tune a model on a task; without arguments the built-in one."""
    columns = table_of(text, label, text_pair, tokens, question)
    resolved = recipe_of(recipe, model, columns | changes_of(changes))
    run = run_named(runs, name or resolved.name)
    if finetune_and_say(resolved, run, data, resume, overwrite):
        say_next(f"quantkit {'bench' if resolved.is_recurrent else 'ptq'} {run.folder.name}")


@app.command()
def ptq(
    run: RunArgument = "",
    bits: Annotated[
        int | None, typer.Option(help="Bits of the weights, 8 or 4; default: the recipe's.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Points the score may fall: promote fragile parts until it holds."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Quantize by this recipe, not the run's.")] = "",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Any fine-tuned model folder instead of a run.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="With --checkpoint: calibration texts, one a line.")
    ] = None,
    target: Target = "",
    data: Data = None,
    runs: Runs = RUNS,
    overwrite: Overwrite = False,
    changes: Set = None,
) -> None:
    """Quantize a fine-tuned model after training, to a packed checkpoint and ONNX."""
    if max_drop is not None:
        from quantkit.precision import check_budget

        check_budget(max_drop)
    if checkpoint is not None:
        made_by = resolved(_base_of(checkpoint, recipe), bits, changes, target)
        _ptq_checkpoint(checkpoint, texts, made_by, runs, overwrite, data, max_drop)
        return
    chosen, made_by = run_and_recipe(run, runs, recipe, changes, bits, target=target)
    if max_drop is None:
        ptq_and_say(made_by, chosen, data or chosen.data(), overwrite)
    else:
        ptq_within_and_say(made_by, chosen, data or chosen.data(), max_drop, overwrite)
    say_predict(chosen.quantized_folder(made_by))
    say_next(f"quantkit bench {chosen.folder.name}")


@app.command()
def export(
    folder: Annotated[
        Path | None, typer.Argument(help="A checkpoint folder, float or packed.")
    ] = None,
    target: Target = "",
    runs: Runs = RUNS,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as ONNX, and prove that it answers the same."""
    from quantkit.pipeline import export_folder

    exported = export_folder(
        folder or newest_quantized(runs),
        target=target or None,
        overwrite=overwrite,
    )
    say(f"ONNX, verified on {exported.parity.rows} rows: {exported.path}")
    say_predict(exported.path)


@app.command("run")
def run_line(
    recipe: RecipeArgument,
    model: Model = "",
    data: Data = None,
    runs: Runs = RUNS,
    name: Name = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    changes: Set = None,
) -> None:
    """The whole line: fine-tune, quantize, export, verify, measure, report."""
    line = recipe_of(recipe, model, changes_of(changes))
    chosen = run_named(runs, name or line.name)
    if not resume or chosen.interrupted or not chosen.complete:
        finetune_and_say(line, chosen, data, resume, overwrite)
    done = resume and chosen.quantized_folder(line).is_dir()
    if not (line.is_recurrent or done):
        ptq_and_say(line, chosen, data, overwrite)
    measure_and_say(line, chosen, data, threads, ())


def _base_of(checkpoint: Path, recipe: str) -> "Recipe":
    """The recipe file, or without one the defaults."""
    from quantkit.recipe import Recipe, load_recipe

    return load_recipe(recipe) if recipe else Recipe(_name_of(checkpoint), "none", str(checkpoint))


def _name_of(checkpoint: Path) -> str:
    """The folder's name; what is not allowed in a recipe's becomes hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.resolve().name).lstrip("-._") or "model"


def _ptq_checkpoint(
    checkpoint: Path,
    texts: Path | None,
    made_by: "Recipe",
    runs: Path,
    overwrite: bool,
    data: Path | None,
    max_drop: float | None,
) -> None:
    from quantkit import pipeline

    if texts is None:
        raise RecipeError(
            "--checkpoint needs --texts FILE: about 256 texts of the model's task, one a line, "
            "to take the input ranges from."
        )
    run = run_named(runs, _name_of(checkpoint))
    folder = run.quantized_folder(made_by)
    inputs = pipeline.read_inputs(texts, checkpoint)
    if max_drop is None:
        with progress() as report:
            made = pipeline.ptq_checkpoint(
                made_by, checkpoint, inputs, folder, overwrite=overwrite, progress=report
            )
        say_quantized(made)
    else:
        ptq_within_and_say(
            made_by, run, data, max_drop, overwrite, checkpoint=checkpoint, texts=inputs
        )
    say_predict(folder)
