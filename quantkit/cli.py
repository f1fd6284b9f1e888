"""The command line: arguments to a recipe, one verb, and a few lines on what came out.

Only errors and typer are imported at the top, so that `--help` answers at once; a test
pins the option values below to the recipe's own.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from quantkit.errors import CheckpointError, QuantkitError, RecipeError

if TYPE_CHECKING:
    from quantkit.recipe import Recipe
    from quantkit.runs import Run

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fine-tune IndoBERT and other BERT encoders, make them 4 times smaller, export ONNX "
    "that is proven to answer the same, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a shipped one's name.")]
RunArgument = Annotated[str, typer.Argument(help="A run's name; default: the latest one.")]
Model = Annotated[str, typer.Option(help="Folder or Hub name, instead of the recipe's model.")]
Data = Annotated[Path | None, typer.Option(help="Folder with the dataset's original files.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
Name = Annotated[str, typer.Option(help="The run's name; default: the recipe's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Threads = Annotated[int | None, typer.Option(help="Threads of each session; default: all.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a recipe's value, e.g. --set finetune.epochs=5"),
]

RUNS = Path("runs")

# Import names of what the extra `train` installs.
_TRAINING = {"torch", "transformers", "accelerate", "datasets", "evaluate", "sklearn"}
_TRAINING |= {"pydantic", "yaml", "onnx"}


def main() -> None:
    """Run the command line; a user's mistake exits with status 2 and one message."""
    try:
        app()
    except QuantkitError as problem:
        _fail(str(problem))
    except ModuleNotFoundError as problem:
        missing = (problem.name or "").partition(".")[0]
        if missing not in _TRAINING:
            raise
        _fail(
            f"This command needs {missing}, which serving alone does not install: "
            f"pip install 'quantkit[train,cpu]'"
        )
    except KeyboardInterrupt:
        _fail("Interrupted. An unfinished fine-tuning continues with --resume.", status=130)


@app.command()
def finetune(
    recipe: RecipeArgument = "builtin.yaml",
    model: Model = "",
    data: Data = None,
    runs: Runs = RUNS,
    name: Name = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    changes: Set = None,
) -> None:
    """Fine-tune a model on a task; without arguments the built-in one."""
    resolved = _recipe(recipe, model, changes)
    _finetune(resolved, _run(runs, name or resolved.name), data, resume, overwrite)
    _next(f"quantkit ptq {name or resolved.name} --bits 8")


@app.command()
def ptq(
    run: RunArgument = "",
    bits: Annotated[int, typer.Option(help="Bits of the weights: 8.")] = 8,
    recipe: Annotated[str, typer.Option(help="Quantize by this recipe, not the run's.")] = "",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Any fine-tuned model folder instead of a run.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="With --checkpoint: calibration texts, one a line.")
    ] = None,
    data: Data = None,
    runs: Runs = RUNS,
    overwrite: Overwrite = False,
    changes: Set = None,
) -> None:
    """Quantize a fine-tuned model after training, to a packed checkpoint and ONNX."""
    if checkpoint is not None:
        _ptq_checkpoint(checkpoint, texts, bits, recipe, runs, overwrite, changes)
        return
    chosen, resolved = _run_and_recipe(run, runs, recipe, changes, bits)
    _ptq(resolved, chosen, data or chosen.data(), overwrite)
    _next(f'quantkit predict "makanannya enak sekali" --model {chosen.quantized_folder(resolved)}')
    _next(f"quantkit bench {chosen.folder.name}")


@app.command()
def export(
    folder: Annotated[
        Path | None, typer.Argument(help="A checkpoint folder, float or packed.")
    ] = None,
    target: Annotated[str, typer.Option(help="Where the file is to run: cpu.")] = "cpu",
    runs: Runs = RUNS,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as ONNX, and prove that it answers the same."""
    from quantkit.pipeline import export_folder

    if target != "cpu":
        raise RecipeError(f"--target is {target!r}; quantkit supports 'cpu'.")
    exported = export_folder(folder or _newest_quantized(runs), overwrite=overwrite)
    _say(f"ONNX, verified on {exported.parity.rows} texts: {exported.path}")
    _next(f'quantkit predict "makanannya enak sekali" --model {exported.path.parent.parent}')


@app.command("eval")
def evaluate(
    model: Annotated[Path | None, typer.Argument(help="An exported folder.")] = None,
    task: Annotated[str, typer.Option(help="Default: the run's task.")] = "",
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    runs: Runs = RUNS,
) -> None:
    """Score an exported model on a task's rows."""
    from quantkit.evaluation import evaluate_folder

    folder = model or _newest_quantized(runs)
    scores = evaluate_folder(folder, task, data, split)
    for key, value in scores.items():
        _say(f"{key:>24}  {100 * value:6.2f} %")
    _next(f"quantkit bench {folder.parent.name}")


@app.command()
def predict(
    texts: Annotated[list[str], typer.Argument(help="One or more texts.")],
    model: Annotated[Path | None, typer.Option(help="An exported folder.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Answer texts with an exported model; needs no torch."""
    from quantkit.runtime import load

    for text, answer in zip(
        texts, load(model or _newest_quantized(runs)).predict(texts), strict=True
    ):
        typer.echo(f"{answer.label}\t{answer.score:.4f}\t{text}")


@app.command()
def bench(
    run: RunArgument = "",
    data: Data = None,
    runs: Runs = RUNS,
    threads: Threads = None,
    changes: Set = None,
) -> None:
    """Measure float and quantized files side by side and write the report."""
    chosen, resolved = _run_and_recipe(run, runs, "", changes, 8, make=False)
    _bench(resolved, chosen, data or chosen.data(), threads)


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
    resolved = _recipe(recipe, model, changes)
    chosen = _run(runs, name or resolved.name)
    if not (resume and chosen.complete):
        _finetune(resolved, chosen, data, resume, overwrite)
    if not (resume and chosen.quantized_folder(resolved).is_dir()):
        _ptq(resolved, chosen, data, overwrite)
    _bench(resolved, chosen, data, threads)


def _finetune(
    recipe: "Recipe", run: "Run", data: Path | None, resume: bool, overwrite: bool
) -> None:
    from quantkit import pipeline

    result = pipeline.finetune(recipe, run, data, resume=resume, overwrite=overwrite)
    _say(
        f"Fine-tuned {recipe.model} on {recipe.task}: validation macro F1 "
        f"{100 * result.best_score:.1f} % in epoch {result.best_epoch}, {result.steps} steps, "
        f"{result.seconds:.0f} s."
    )
    _say(f"Checkpoint: {run.float_folder}")


def _ptq(recipe: "Recipe", run: "Run", data: Path | None, overwrite: bool) -> None:
    from quantkit import pipeline

    _report_quantized(pipeline.ptq(recipe, run, data, overwrite=overwrite))


def _ptq_checkpoint(
    checkpoint: Path,
    texts: Path | None,
    bits: int,
    recipe: str,
    runs: Path,
    overwrite: bool,
    changes: list[str] | None,
) -> None:
    from quantkit import pipeline
    from quantkit.recipe import Recipe, load_recipe, with_bits, with_changes

    if texts is None:
        raise RecipeError(
            "--checkpoint needs --texts FILE: about 256 texts of the model's task, one a line, "
            "to take the input ranges from."
        )
    name = checkpoint.resolve().name
    base = load_recipe(recipe) if recipe else Recipe(name, "none", str(checkpoint))
    resolved = with_bits(with_changes(base, _changes(changes)), bits)
    folder = _run(runs, name).quantized_folder(resolved)
    made = pipeline.ptq_checkpoint(
        resolved, checkpoint, pipeline.read_texts(texts), folder, overwrite=overwrite
    )
    _report_quantized(made)
    _next(f'quantkit predict "makanannya enak sekali" --model {folder}')


def _report_quantized(made: Any) -> None:  # noqa: ANN401
    for note in made.quantized.notes:
        _say(f"Note: {note}")
    _say(f"Packed checkpoint: {made.folder}")
    _say(f"ONNX, verified on {made.exported.parity.rows} texts: {made.exported.path}")


def _bench(recipe: "Recipe", run: "Run", data: Path | None, threads: int | None) -> None:
    from quantkit import pipeline
    from quantkit.report import to_markdown

    report = pipeline.bench(recipe, run, data, threads=threads)
    typer.echo(to_markdown(report))
    _say(f"Report: {run.folder / 'report.json'} and report.md")
    _next(f'quantkit predict "makanannya enak sekali" --model {run.quantized_folder(recipe)}')


def _recipe(source: str, model: str, changes: list[str] | None) -> "Recipe":
    from quantkit.recipe import load_recipe, with_changes

    values = {"model": model} if model else {}
    return with_changes(load_recipe(source), values | _changes(changes))


def _changes(texts: list[str] | None) -> dict[str, str]:
    """The values of --set by their dotted paths."""
    values = {}
    for text in texts or []:
        path, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"--set {text}: write PATH=VALUE, e.g. finetune.epochs=5")
        values[path] = value
    return values


def _run(runs: Path, name: str) -> "Run":
    from quantkit.runs import Run

    return Run(runs / name)


def _run_and_recipe(
    name: str, runs: Path, recipe: str, changes: list[str] | None, bits: int, make: bool = True
) -> tuple["Run", "Recipe"]:
    """The named run, else the latest, else (if `make`) the built-in one, made now."""
    from quantkit.recipe import builtin_recipe, with_bits, with_changes
    from quantkit.runs import find_run, latest_run

    values = _changes(changes)
    checked = with_bits(builtin_recipe(), bits)  # before any work: is that number supported?
    chosen = find_run(name, runs) if name else latest_run(runs)
    if chosen is None:
        if not make:
            raise CheckpointError(
                f"{runs} holds no finished run. Make one: quantkit run builtin.yaml"
            )
        _say(f"{runs} holds no finished run: making the built-in one first.")
        chosen = _run(runs, checked.name)
        _finetune(checked, chosen, None, chosen.training_folder.is_dir(), overwrite=False)
    elif not name:
        _say(f"Taking the latest run: {chosen.folder}")
    resolved = _recipe(recipe, "", None) if recipe else chosen.recipe()
    return chosen, with_bits(with_changes(resolved, values), bits)


def _newest_quantized(runs: Path) -> Path:
    files = sorted(
        runs.glob("*/w*a*/onnx/model_quantized.onnx"), key=lambda path: path.stat().st_mtime
    )
    if not files:
        raise CheckpointError(f"{runs} holds no exported model. Make one: quantkit ptq --bits 8")
    return files[-1].parent.parent


def _say(line: str) -> None:
    typer.echo(line)


def _next(command: str) -> None:
    typer.echo(f"Next: {command}")


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"quantkit: {message}", err=True)
    sys.exit(status)
