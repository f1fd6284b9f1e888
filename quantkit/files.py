"""Files and folders that appear under their final name only when they are complete."""

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantkit.errors import OutputExistsError, QuantkitError

__all__ = [
    "leftovers",
    "new_file",
    "new_folder",
    "put_back",
    "read_json",
    "refuse_existing",
    "write_json",
    "write_text",
]


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` if the block ends without an exception.

    With `overwrite`, an earlier `target` stays in place until the new one is complete. What a
    killed process left under temporary names is removed, or put back where it was `target`.

    Raises:
        OutputExistsError: `target` exists, is not empty, and `overwrite` is false.
    """
    _clear_abandoned(target)
    if not overwrite:
        refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    claim = _claim(partial)
    try:
        yield partial
        _usual_permissions(partial)
        if target.exists():
            retired = partial.with_name(partial.name + ".old")
            target.replace(retired)
            partial.replace(target)
            shutil.rmtree(retired)
        else:
            partial.replace(target)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
        if claim is not None:
            os.close(claim)


def leftovers(target: Path) -> list[Path]:
    """What `new_folder` has under temporary names, at work or killed."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.partial-*"))


def put_back(target: Path) -> None:
    """Undo what a kill between the two renames of `new_folder` left: only the older `target`."""
    retired = [path for path in leftovers(target) if path.suffix == ".old"]
    if retired and not target.exists():
        with suppress(FileNotFoundError):  # another process has just done it
            retired[-1].replace(target)


def refuse_existing(target: Path) -> None:
    """Refuse a folder that holds something, before long work rather than behind it.

    Raises:
        OutputExistsError: it exists and is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise OutputExistsError(
            f"{target} exists already. Pass --overwrite to replace it, or choose another "
            f"name with --name."
        )


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` that replaces it if the block ends without an exception."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text under `target` in one step."""
    with new_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(target: Path, value: object) -> None:
    """Write `value` as indented JSON under `target` in one step."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(source: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        QuantkitError: the file is not there, or does not hold a JSON object.
    """
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantkitError(f"{source}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise QuantkitError(
            f"{source} is not JSON ({problem}). The file is damaged: make it again."
        ) from None
    if not isinstance(value, dict):
        raise QuantkitError(f"{source} holds a {type(value).__name__}, not a JSON object.")
    return value


def _claim(folder: Path) -> int | None:
    """A lock that ends with this process, as a file descriptor; None if another has it.

    Also None where the file system knows no locks: there nothing is ever taken for abandoned.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened


def _clear_abandoned(target: Path) -> None:
    put_back(target)
    for path in leftovers(target):
        with suppress(FileNotFoundError):  # another process has just done it
            claim = _claim(path)
            if claim is not None:
                shutil.rmtree(path)
                os.close(claim)


def _usual_permissions(folder: Path) -> None:
    """Give what temporary names and safetensors keep to one user the permissions of any file."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
