"""Datasets: one loader per family, all into `TaskData`."""

import difflib
from pathlib import Path

from quantkit.data.builtin import load_builtin
from quantkit.data.indonlu import HOW_TO_GET, load_smsa
from quantkit.data.schema import TaskData
from quantkit.errors import DataError

__all__ = ["TaskData", "load_task"]

_FROM_FOLDER = {"smsa": load_smsa}


def load_task(name: str, folder: Path | None) -> TaskData:
    """Load a dataset by its name in a recipe.

    `builtin` is generated and needs no `folder`; every other task is read from one.

    Raises:
        DataError: an unknown name, no folder, or files that cannot be used.
    """
    if name == "builtin":
        return load_builtin()
    if name not in _FROM_FOLDER:
        raise DataError(_unknown_task(name))
    if folder is None:
        raise DataError(f"{name} is read from files: pass --data FOLDER. {HOW_TO_GET}.")
    return _FROM_FOLDER[name](folder)


def _unknown_task(name: str) -> str:
    known = ["builtin", *_FROM_FOLDER]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown task {name!r}. Known tasks: {', '.join(known)}.{hint}"
