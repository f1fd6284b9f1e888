"""The application that the commands belong to, and what a mistake looks like."""

import sys
from typing import NoReturn

import typer

from quantkit.errors import QuantkitError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fine-tune IndoBERT and other BERT encoders, make them 4 times smaller, export ONNX "
    "that is proven to answer the same, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # exit status

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
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as problem:
        reason = f"{problem.filename} cannot be read or written: {problem.strerror}"
        _fail(f"{reason}. Choose another place.")
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED:  # which typer makes of a KeyboardInterrupt
            _fail(
                "Interrupted. An unfinished fine-tuning continues with --resume, an analysis of "
                "sensitivity when it is asked for again.",
                INTERRUPTED,
            )
        raise


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"quantkit: {message}", err=True)
    sys.exit(status)
