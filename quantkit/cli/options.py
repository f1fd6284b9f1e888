"""Options that several commands share, and how they become a recipe and a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from quantkit.recipe import Recipe
    from quantkit.runs import Run

__all__ = [
    "RUNS",
    "Data",
    "Device",
    "Label",
    "Model",
    "Name",
    "Overwrite",
    "Question",
    "RecipeArgument",
    "Resume",
    "RunArgument",
    "Runs",
    "Set",
    "Target",
    "Text",
    "TextPair",
    "Threads",
    "Tokens",
    "changes_of",
    "newest_quantized",
    "quoted",
    "recipe_of",
    "run_named",
    "say",
    "say_next",
    "say_predict",
    "table_of",
]

EXAMPLE = "makanannya enak sekali"

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a shipped one's name.")]
RunArgument = Annotated[str, typer.Argument(help="A run's name; default: the latest one.")]
Model = Annotated[str, typer.Option(help="Folder or Hub name, instead of the recipe's model.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder with the dataset's original files, or a table's file.")
]
Runs = Annotated[Path, typer.Option(help="Folder that holds all runs.")]
Name = Annotated[str, typer.Option(help="The run's name; default: the recipe's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of each session; default: all.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a recipe's value, e.g. --set finetune.epochs=5"),
]
Target = Annotated[
    str, typer.Option(help="Where the file is to run: cpu, portable, cuda or cuda-unpadded.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Text = Annotated[str, typer.Option(help="A table of your own: the column with the texts.")]
Label = Annotated[str, typer.Option(help="A table of your own: the column with the labels.")]
TextPair = Annotated[str, typer.Option(help="A table of your own: the second text of a pair.")]
Tokens = Annotated[str, typer.Option(help="A table of your own: the column with lists of words.")]
Question = Annotated[str, typer.Option(help="With --tokens: the question before each passage.")]

RUNS = Path("runs")


def recipe_of(source: str, model: str, changes: Mapping[str, object]) -> "Recipe":
    """The recipe file `source` with another model, if one is given, and changed values."""
    from quantkit.recipe import load_recipe, with_changes

    values = {"model": quoted(model)} if model else {}
    return with_changes(load_recipe(source), values | dict(changes))


def changes_of(texts: list[str] | None) -> dict[str, object]:
    """The values of --set by their dotted paths."""
    values: dict[str, object] = {}
    for text in texts or []:
        path, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"--set {text}: write PATH=VALUE, e.g. finetune.epochs=5")
        values[path] = value
    return values


def table_of(text: str, label: str, text_pair: str, tokens: str, question: str) -> dict[str, str]:
    """The recipe's values that the columns of a table of one's own mean; none without any."""
    columns = {
        "data.text": text,
        "data.label": label,
        "data.text_pair": text_pair,
        "data.tokens": tokens,
        "data.question": question,
    }
    given = {path: quoted(column) for path, column in columns.items() if column}
    return {"task": "custom", **given} if given else {}


def quoted(text: str) -> str:
    """Text that a recipe reads back as it is, even `no` and `1`, which YAML takes for values."""
    return json.dumps(text, ensure_ascii=False)


def run_named(runs: Path, name: str) -> "Run":
    """The run of a name; it need not exist yet.

    Raises:
        RecipeError: a name that would lead out of the folder of runs.
    """
    from quantkit.runs import Run

    if Path(name).name != name:
        raise RecipeError(f"--name is {name!r}: a run's name is one word. --runs takes a folder.")
    return Run(runs / name)


def newest_quantized(runs: Path) -> Path:
    """The folder that was quantized last."""
    folders = sorted(runs.glob("*/w*a*"), key=_last_export)
    if not folders or not _last_export(folders[-1]):
        raise CheckpointError(f"{runs} holds no exported model. Make one: quantkit ptq --bits 8")
    return folders[-1]


def _last_export(folder: Path) -> float:
    """When its newest ONNX file was written; 0 without any."""
    return max((path.stat().st_mtime for path in folder.glob("onnx/**/*.onnx")), default=0.0)


def say(line: str) -> None:
    """A line on standard output."""
    typer.echo(line)


def say_next(command: str) -> None:
    """The command that is natural now."""
    typer.echo(f"Next: {command}")


def say_predict(model: Path) -> None:
    """How to ask a model that was just made, on the device that its file is for."""
    from quantkit.onnx_file import CUDA, exported_targets, target_of

    targets = [target_of(model)] if model.is_file() else exported_targets(model)
    device = " --device cuda" if targets and CUDA.issuperset(targets) else ""
    say_next(f'quantkit predict "{EXAMPLE}" --model {model}{device}')
