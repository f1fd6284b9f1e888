"""Rows of integers of different lengths, kept in a file instead of in memory."""

import hashlib
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ragged", "RaggedWriter"]

Row = Sequence[int] | NDArray[np.integer]


class Ragged:
    """Rows of different lengths, flat in a temporary file that has no name.

    The file is mapped, not read, so that a table larger than the memory can be trained on;
    the environment variable `TMPDIR` says where it lies.
    """

    def __init__(self, values: NDArray[np.integer], ends: NDArray[np.int64]) -> None:
        self._values = values
        self._ends = ends  # [rows + 1], the first is 0

    @classmethod
    def of(cls, rows: Iterable[Row], dtype: type[np.integer]) -> "Ragged":
        """Write all `rows`, one after the other."""
        writer = RaggedWriter(dtype)
        for row in rows:
            writer.add(row)
        return writer.finish()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> NDArray[np.integer]:
        return self._values[self._ends[row] : self._ends[row + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """Length of each row."""
        return np.diff(self._ends)

    def digest(self) -> str:
        """A hash of all lengths and values."""
        found = hashlib.blake2b(self._ends.tobytes(), digest_size=16)
        for start in range(0, len(self._values), 1 << 22):
            found.update(self._values[start : start + (1 << 22)].tobytes())
        return found.hexdigest()


class RaggedWriter:
    """Appends rows; `finish` once gives them back."""

    def __init__(self, dtype: type[np.integer]) -> None:
        self._dtype = dtype
        self._ends = array("q", [0])
        self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # of rows that are given up

    def add(self, row: Row) -> None:
        """Append one row."""
        self._file.write(np.asarray(row, dtype=self._dtype).tobytes())
        self._ends.append(self._ends[-1] + len(row))

    def finish(self) -> Ragged:
        """The rows; the file is closed, and lives on as long as its mapping."""
        with self._file as file:
            file.flush()
            values: NDArray[np.integer] = np.empty(0, self._dtype)
            if self._ends[-1]:
                values = np.memmap(file, self._dtype, "r")
        return Ragged(values, np.frombuffer(self._ends, np.int64))
