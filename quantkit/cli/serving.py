"""Commands that ask models: predict and eval."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from quantkit.cli.app import app
from quantkit.cli.options import RUNS, Data, Device, Runs, newest_quantized, say, say_next
from quantkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from quantkit.runtime import Session

__all__ = ["evaluate", "predict"]

Row = str | Mapping[str, Any]
Engine = Annotated[
    str, typer.Option(help="onnxruntime, openvino (a portable file) or torch (a checkpoint).")
]

PLAIN = ("pearson", "spearman", "cosine", "rmse", "mae")  # scores that are no shares


@app.command("eval")
def evaluate(
    model: Annotated[Path | None, typer.Argument(help="An exported folder.")] = None,
    task: Annotated[str, typer.Option(help="Default: the run's task.")] = "",
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    engine: Engine = "onnxruntime",
    device: Device = "cpu",
    runs: Runs = RUNS,
) -> None:
    """Score an exported model on a task's rows."""
    from quantkit.evaluation import evaluate_folder

    folder = model or newest_quantized(runs)
    found = evaluate_folder(folder, task, data, split, engine=engine, device=device)
    for note in found.notes:
        say(f"Note: {note}")
    for key, value in found.scores.items():
        say(f"{key:>24}  " + (f"{value:6.4f}" if key in PLAIN else f"{100 * value:6.2f} %"))
    for each in found.classes:
        say(
            f"{each.name:>24}  precision {100 * each.precision:6.2f} %  recall "
            f"{100 * each.recall:6.2f} %  F1 {100 * each.f1:6.2f} %  of {each.support}"
        )
    say_next(f"quantkit bench {folder.parent.name}")


@app.command()
def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="One or more texts.")] = None,
    file: Annotated[
        str,
        typer.Option(help="Lines of text, or of JSON with text, text_pair, tokens; - is stdin."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    model: Annotated[Path | None, typer.Option(help="An exported folder.")] = None,
    engine: Engine = "onnxruntime",
    device: Device = "cpu",
    runs: Runs = RUNS,
) -> None:
    """Answer texts with an exported model; needs no torch, unless that is the engine.

    Files give JSON lines, one for each line; that of an empty line is null.
    """
    from quantkit.runtime import load

    if bool(texts) == bool(file):
        raise RecipeError("predict takes texts, or --file FILE (- for standard input).")
    session = load(model or newest_quantized(runs), engine=engine, device=device)
    if file:
        with _lines(file) as lines:
            _print(_answers(session, _rows(lines, file)))
    elif as_json or session.head.kind != "classification":
        _print(session.stream(texts or []))
    else:
        for text, answer in zip(texts or [], session.predict(texts or []), strict=True):
            typer.echo(f"{answer.label}\t{answer.score:.4f}\t{text}")  # type: ignore[union-attr]


def _print(answers: Iterator[dict[str, Any] | None]) -> None:
    """JSON lines, while the rows are still being read."""
    import json

    for answer in answers:
        typer.echo(json.dumps(answer, ensure_ascii=False))


def _answers(session: "Session", rows: Iterator[Row | None]) -> Iterator[dict[str, Any] | None]:
    """An answer for each row and None for None, so that answers stand beside their lines."""
    empty = deque([0])  # rows of None before each of the others, as far as they have been read

    def others() -> Iterator[Row]:
        for row in rows:
            if row is None:
                empty[-1] += 1
            else:
                empty.append(0)
                yield row

    for answer in session.stream(others()):
        yield from repeat(None, empty.popleft())
        yield answer
    yield from repeat(None, empty.popleft())


def _rows(lines: Iterator[str], file: str) -> Iterator[Row | None]:
    """Each line as a text, or what its JSON object says; an empty one as None."""
    import json

    for at, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n").removeprefix("\ufeff")
        if not text.strip():
            yield None
            continue
        if not text.startswith("{"):
            yield text
            continue
        try:
            yield json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise DataError(
                f"{file}:{at}: a line that begins with a brace is read as JSON, and this one is "
                f'none ({problem}). Write {{"text": ...}}.'
            ) from None


@contextmanager
def _lines(file: str) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 file, or of standard input, one after the other."""
    try:
        if file == "-":
            yield iter(sys.stdin)
            return
        stream: TextIO
        with Path(file).open(encoding="utf-8", newline="\n") as stream:
            yield iter(stream)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. --file takes a file, or - for stdin.") from None
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is not UTF-8 ({problem.reason}). Convert it first.") from None
