"""Text files as rows that know their line.

All of them are UTF-8; a byte-order mark and Windows line ends are accepted. Lines end at line
feeds only, so that characters such as U+2028 stay inside their text.
"""

import ast
import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from quantkit.data.naming import unknown
from quantkit.data.schema import Example, check_label
from quantkit.errors import DataError

__all__ = [
    "check_columns",
    "find_folder",
    "opened",
    "parse_list",
    "read_csv",
    "read_lines",
    "read_sentences",
]

BLOCK = 1 << 20  # bytes


def find_folder(name: str, places: Sequence[Path], files: Sequence[str], advice: str) -> Path:
    """The first of `places` that holds any of `files`; all of them must be there.

    Raises:
        DataError: no place holds one, or one is missing; with `advice` on where to get it.
    """
    for place in places:
        if any((place / file).is_file() for file in files):
            missing = [file for file in files if not (place / file).is_file()]
            if missing:
                raise DataError(f"{place / missing[0]}: no such file. {advice}.")
            return place
    looked = "".join(f"\n  {place}" for place in places)
    raise DataError(
        f"{name}: no {files[0]} was found. Looked in:{looked}\n"
        f"{advice}, and pass its folder with --data FOLDER."
    )


@contextmanager
def opened(file: Path, newline: str = "") -> Iterator[TextIO]:
    """A text file; what is wrong with its bytes becomes a DataError with the line.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as lines:
            yield lines
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{file}:{_line_of_bad_byte(file)} is not UTF-8 ({problem.reason}). Save the file "
            f"as UTF-8, or get the original one."
        ) from None
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror}. Check the path.") from None


def _line_of_bad_byte(file: Path) -> int:
    """No byte inside a character of UTF-8 is a line feed, so that each line stands alone."""
    with file.open("rb") as lines:
        for at, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                return at
    return 0


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The number of each line and the line without its end.

    Raises:
        DataError: see `opened`.
    """
    with opened(file, newline="\n") as lines:
        for at, line in enumerate(lines, start=1):
            yield at, line.removesuffix("\n").removesuffix("\r")


def read_csv(
    file: Path, columns: Sequence[str], delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """File and line of each row, and its cells by the names in the header.

    Cells may be quoted, and a quoted one may hold line ends; blank lines are no rows.

    Raises:
        DataError: a column of `columns` is missing, a row has more or fewer cells than the
            header, quotes do not match, or see `opened`.
    """
    with opened(file) as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        line = 1  # of the row that comes next: a row may take up several lines
        try:
            header = next(reader, [])
            check_columns(file, header, columns)
            line = reader.line_num + 1
            for cells in reader:
                where, line = f"{file}:{line}", reader.line_num + 1
                if cells:
                    yield where, _named(header, cells, where)
        except csv.Error as problem:
            raise DataError(
                f"{file}:{line}: {problem}. Put double quotes around a cell that holds "
                f"quotes, and write each of them twice."
            ) from None


def _named(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: expected {len(header)} columns ({', '.join(header)}), found "
            f"{len(cells)}: {', '.join(cells)[:60]!r}. Put double quotes around a cell that "
            f"holds the separator."
        )
    return dict(zip(header, cells, strict=True))


def check_columns(file: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Make sure that a table has the columns that are to be read.

    Raises:
        DataError: one of them is missing, or stands in the header twice.
    """
    if not header:
        raise DataError(f"{file} holds no rows. Every split needs at least one.")
    for column in columns:
        if column not in header:
            raise DataError(f"{file}:1: {unknown('column', column, header)}")
        if header.count(column) > 1:
            raise DataError(f"{file}:1: the column {column!r} stands there twice. Rename one.")


def read_sentences(file: Path, labels: tuple[str, ...]) -> Iterator[Example]:
    """Sentences of one word per line, word TAB label, with a blank line after each.

    A word may hold spaces.

    Raises:
        DataError: a line is not word TAB label, an unknown label, or see `opened`.
    """
    words: list[str] = []
    tags: list[str] = []
    first = 1
    for at, line in read_lines(file):
        if line.strip() or "\t" in line:
            word, tag = _word_and_label(line, f"{file}:{at}")
            check_label(tag, labels, f"{file}:{at}")
            first = first if words else at
            words.append(word)
            tags.append(tag)
        elif words:
            yield Example(f"{file}:{first}", words, tags)
            words, tags = [], []
    if words:
        yield Example(f"{file}:{first}", words, tags)


def _word_and_label(line: str, where: str) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2 or not parts[0]:
        what = "an empty word" if len(parts) == 2 else f"{len(parts)} columns"
        raise DataError(
            f"{where}: expected word TAB label, found {what}: {line[:60]!r}. A word cannot "
            f"hold a tab; a blank line ends a sentence."
        )
    return parts[0], parts[1]


def parse_list(cell: str, column: str, where: str) -> list[str]:
    """The strings of a cell that holds a Python list of strings; nothing is executed.

    Raises:
        DataError: the cell holds anything else.
    """
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise DataError(
            f"{where}: the column {column!r} holds {cell[:60]!r}, not a list of strings such "
            f"as ['satu', 'dua']. Correct the cell."
        )
    return value
