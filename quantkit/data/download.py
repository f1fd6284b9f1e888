"""Fetching public datasets: pinned commits, checked contents, resumed after an interruption."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from quantkit.data import checksums
from quantkit.data.indonlu import TASKS
from quantkit.data.nusax import FILES, languages_of
from quantkit.errors import DataError

__all__ = ["cache_folder", "download_indonlu", "download_nusax", "fetch"]

GITHUB = "https://raw.githubusercontent.com"
INDONLU = "IndoNLP/indonlu/ce728f6926a36174b9923dfe49d6a6839b6e9bb7/dataset"
NUSAX = "IndoNLP/nusax/75b0be5d982348332509f296e10d9bf9cb66d60f/datasets/sentiment"
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 16  # bytes


def cache_folder() -> Path:
    """Where downloads are kept: QUANTKIT_CACHE, else ~/.cache/quantkit."""
    chosen = os.environ.get("QUANTKIT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "quantkit"


def download_indonlu(task: str) -> Path:
    """Fetch the files of an IndoNLU task that are not in the cache yet; their folder.

    Raises:
        DataError: see `fetch`.
    """
    spec = TASKS[task]
    return _download(INDONLU, spec.folder, spec.files, checksums.INDONLU)


def download_nusax(task: str) -> Path:
    """Fetch the files of a NusaX task that are not in the cache yet; the folder above them.

    Raises:
        DataError: see `fetch`.
    """
    for language in languages_of(task):
        folder = _download(NUSAX, language, FILES, checksums.NUSAX)
    return folder.parent


def _download(
    origin: str, folder: str, files: tuple[str, ...], known: Mapping[str, tuple[str, ...]]
) -> Path:
    # The commit is a part of the path: files of another one are not taken for this one's.
    home = cache_folder() / origin / folder
    for file, sha256 in zip(files, known[folder], strict=True):
        if not (home / file).is_file():
            fetch(f"{GITHUB}/{origin}/{folder}/{file}", sha256, home / file)
    return home


def fetch(url: str, sha256: str, target: Path) -> None:
    """Download a file; it appears as `target` when it is complete and has this SHA-256.

    What arrives is kept beside `target` as `.<name>.partial`, and the next call goes on
    from there.

    Raises:
        DataError: no connection, an interrupted one, an error of the server, other contents
            than expected, or a folder that cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (partial.is_file() and _digest(partial) == sha256):
            _receive(url, partial)
        found = _digest(partial)
        if found == sha256:
            partial.replace(target)
        else:
            partial.unlink()
    except (OSError, http.client.HTTPException) as problem:
        raise DataError(
            f"{url} could not be fetched: {_reason(problem)}. Run again to go on, or get the "
            f"file by hand and pass --data FOLDER, the folder it is in."
        ) from None
    if found != sha256:
        raise DataError(
            f"{url} has SHA-256 {found}, expected {sha256}: it is damaged, or not the file that "
            f"quantkit knows. Run again, or get it by hand and pass --data FOLDER, the folder "
            f"it is in."
        )


def _reason(problem: Exception) -> object:
    """The status of the server, or what is inside urllib's wrapping of a socket's error."""
    if isinstance(problem, urllib.error.HTTPError):
        return problem
    return problem.reason if isinstance(problem, urllib.error.URLError) else problem


def _receive(url: str, partial: Path) -> None:
    """Add the rest of the file to `partial`, or all of it where the server sends all."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            _store(response, partial, resumed=response.status == http.HTTPStatus.PARTIAL_CONTENT)
    except urllib.error.HTTPError as problem:
        with problem:
            if not have or problem.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        partial.unlink()  # longer than the file, so not a part of it
        _receive(url, partial)


def _store(response: http.client.HTTPResponse, partial: Path, *, resumed: bool) -> None:
    missing = int(response.headers.get("Content-Length", 0))
    with partial.open("ab" if resumed else "wb") as file:
        while block := response.read(BLOCK):
            file.write(block)
            missing -= len(block)
    if missing > 0:  # read() does not say that the connection broke off
        raise ConnectionError(f"the connection broke off, {missing} bytes are missing")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
