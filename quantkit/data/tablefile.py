"""Tables of the user's own: where the files are, and their rows.

Rows are read one after the other and are never held all at once, except those of a JSON
file that is one list. Numbers and dates are not guessed: a cell of a CSV file is its text.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from quantkit.data.naming import unknown
from quantkit.data.readers import check_columns, opened, read_csv, read_lines
from quantkit.errors import DataError

__all__ = ["FORMATS", "find_tables", "read_table"]

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
STEMS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
SEPARATORS = (",", ";", "\t")
ROWS = 1000  # of a Parquet file, decoded at once

Row = tuple[str, Mapping[str, object]]  # file and line, cells by the name of their column


def find_tables(path: Path) -> dict[str, Path]:
    """The files below `path`: {"all": path}, or one per split of a folder.

    Raises:
        DataError: nothing there, another format, no train or no test file, or two files for
            one split.
    """
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise DataError(f"{path} is not one of {', '.join(FORMATS)}. Convert it to one.")
        return {"all": path}
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder. Check the path given with --data.")
    found = {}
    for split, stems in STEMS.items():
        files = [path / (stem + suffix) for stem in stems for suffix in FORMATS]
        files = [file for file in files if file.is_file()]
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise DataError(f"{path} has {names}: two files for the {split} split. Remove one.")
        if files:
            found[split] = files[0]
        elif split != "validation":
            raise DataError(
                f"{path} has no {split} file. A folder needs train and test, and best also "
                f"validation, each as one of {', '.join(FORMATS)}; a single file is split."
            )
    return found


def read_table(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, with at least these columns.

    A CSV file may have semicolons, as spreadsheets write it where the comma is the decimal sign,
    or tabs.

    Raises:
        DataError: the file is broken, or lacks a column.
    """
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_csv(file, columns, "\t" if suffix == ".tsv" else _separator(file, columns))
    if suffix == ".parquet":
        return _read_parquet(file, columns)
    return _read_json(file, columns)


def _separator(file: Path, columns: Sequence[str]) -> str:
    """What stands between the cells of a CSV file, by its header; a comma if nothing fits."""
    with opened(file) as lines:
        header = lines.readline()
    with suppress(csv.Error):  # reading will say where
        for separator in SEPARATORS:
            if set(columns) <= set(next(csv.reader([header], delimiter=separator), [])):
                return separator
    return SEPARATORS[0]


def _read_json(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    with opened(file) as lines:
        start = lines.read(64).lstrip()
    rows = _read_json_list(file) if start.startswith("[") else _read_json_lines(file)
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, found {str(row)[:60]!r}.")
        for column in columns:
            if column not in row:
                raise DataError(f"{where}: {unknown('column', column, list(row))}")
        yield where, row


def _read_json_lines(file: Path) -> Iterator[tuple[str, object]]:
    for at, line in read_lines(file):
        if line.strip():
            yield f"{file}:{at}", _parse(line, f"{file}:{at}")


def _read_json_list(file: Path) -> Iterator[tuple[str, object]]:
    with opened(file) as lines:
        rows = _parse(lines.read(), str(file))
    if isinstance(rows, list):
        yield from ((f"{file}, row {at}", row) for at, row in enumerate(rows, start=1))


def _parse(content: str, where: str) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{where} is not JSON: {problem}. Correct it.") from None


def _read_parquet(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    at = 0
    try:
        with pq.ParquetFile(file) as table:
            check_columns(file, table.schema_arrow.names, columns)
            for batch in table.iter_batches(batch_size=ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    at += 1
                    yield f"{file}, row {at}", row
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{file} is not a sound Parquet file: {problem}. Write it again.") from None
    except UnicodeDecodeError:
        raise DataError(
            f"{file}: a text after row {at} is not UTF-8. Write the file again."
        ) from None
