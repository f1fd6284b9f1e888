"""Datasets: one loader per family, all into `TaskData`."""

from pathlib import Path

from quantkit.data.builtin import load_builtin
from quantkit.data.download import download_indonlu, download_nusax
from quantkit.data.indonlu import TASKS, load_indonlu
from quantkit.data.naming import unknown
from quantkit.data.nusax import LANGUAGES, load_nusax
from quantkit.data.overlap import without_overlap
from quantkit.data.ppkm import HOW_TO_GET, SIZES, load_ppkm
from quantkit.data.schema import TaskData, inputs_of, references_of
from quantkit.data.table import load_table
from quantkit.errors import DataError
from quantkit.source import Source

__all__ = [
    "TaskData",
    "inputs_of",
    "load_task",
    "references_of",
    "task_names",
    "without_overlap",
]

NUSAX = ("nusax", *(f"nusax-{language}" for language in LANGUAGES))


def task_names() -> tuple[str, ...]:
    """Every name that `load_task` knows."""
    return ("builtin", *TASKS, *NUSAX, *SIZES, "custom")


def load_task(name: str, folder: Path | None, source: Source | None = None) -> TaskData:
    """Load a dataset by its name in a recipe.

    `builtin` is generated. IndoNLU's tasks and NusaX are read from `folder`, or downloaded
    where it is None. PPKM and `custom` need a file or folder; `source` describes `custom`.

    Raises:
        DataError: an unknown name, no folder, or files that cannot be used.
    """
    if name not in task_names():
        raise DataError(unknown("task", name, task_names()))
    if name == "custom":
        return load_table(
            _given(
                name,
                folder,
                "It is a table of your own: a file, or a folder with one file per split",
            ),
            source or Source(),
        )
    if source is not None:
        raise DataError(
            f"the slot `data` of a recipe describes the task custom, not {name}. Remove it."
        )
    if name == "builtin":
        return load_builtin()
    if name in TASKS:
        return load_indonlu(name, download_indonlu(name) if folder is None else folder)
    if name in NUSAX:
        return load_nusax(name, download_nusax(name) if folder is None else folder)
    return load_ppkm(name, _given(name, folder, HOW_TO_GET))


def _given(name: str, folder: Path | None, advice: str) -> Path:
    if folder is None:
        raise DataError(f"{name} is read from files: pass --data FOLDER. {advice}.")
    return folder
