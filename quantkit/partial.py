"""Results of an unfinished piece of work, kept in one file so that it can go on where it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.files import read_json, write_json

__all__ = ["PartialResults"]


class PartialResults:
    """Results by name; the file is written anew, in one step, with each of them.

    Args:
        path: the file; None keeps nothing beyond the process.
        known: a mark and results that were complete once; they are taken if the mark fits.
    """

    def __init__(
        self, path: Path | None, known: tuple[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._path = path
        self._known = known
        self._mark = ""
        self._results: dict[str, Any] = {}

    def open(self, mark: str) -> None:
        """Read what was kept under `mark`; results of other work, or a damaged file, are dropped.

        Args:
            mark: says of what the results are, e.g. `ptq.resume.fingerprint`.
        """
        self._mark, self._results = mark, {}
        if self._known is not None and self._known[0] == mark:
            self._results = dict(self._known[1])
            return
        if self._path is None:
            return
        try:
            kept = read_json(self._path)
        except QuantkitError:
            return
        if kept.get("mark") == mark and isinstance(kept.get("results"), dict):
            self._results = kept["results"]

    def get(self, name: str) -> Mapping[str, Any] | None:
        """A finished result; None if it is missing."""
        found: Mapping[str, Any] | None = self._results.get(name)
        return found

    def clear(self) -> None:
        """Remove the file: the work is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def put(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep one more result, of plain values."""
        self._results[name] = dict(values)
        if self._path is not None:
            write_json(self._path, {"mark": self._mark, "results": self._results})
