"""A table of the user's own as a task.

The rows are read twice where the labels have to be found first. They are checked, cleaned
and written to Arrow files that stay on disk while they are used, in a temporary folder that
is removed when the process ends (TMPDIR says where). In memory is one number of 8 bytes for
the text and one for the label of each row.
"""

import atexit
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from datasets.arrow_writer import ArrowWriter

from quantkit.data.columns import answer_of, check_source, columns_of, example_of, kind_of
from quantkit.data.naming import unknown
from quantkit.data.schema import SPLITS, Example, TaskData, check_answers, encode, features_of
from quantkit.data.split import carve, first_of_each, split_rows, text_key
from quantkit.data.tablefile import find_tables, read_table
from quantkit.errors import DataError
from quantkit.heads import Head
from quantkit.source import Source

__all__ = ["load_table"]

CHUNK = 2000  # rows written at once
CARVED = 0.1  # of train, where there is no validation part


@dataclass(frozen=True)
class _Part:
    """The usable rows of a file or split: on disk, and what a split needs of them."""

    rows: Dataset
    keys: np.ndarray  # uint64 [rows], of the texts
    strata: np.ndarray  # int64 [rows]: class ids, or 0
    chosen: np.ndarray  # int64: numbers of the rows that count


def load_table(path: Path, source: Source) -> TaskData:
    """Read a file, which is split, or a folder with a file per split, as `custom`.

    Texts are split by distinct text, stratified by class. Where there is no validation part,
    a share of the train texts becomes one and a note says so: nothing is selected on test.

    Raises:
        DataError: a file is missing or broken, lacks a column, or has a row that is not as
            `source` says; or a split would be empty.
    """
    check_source(source)
    tables = find_tables(path)
    head = Head(kind_of(source), _labels(tables, source))
    left_out: Counter[str] = Counter()
    parts = {split: _write(file, source, head, left_out) for split, file in tables.items()}
    notes = [f"Left out: {reason} ({count})." for reason, count in left_out.items() if count]
    if "all" in parts:
        parts = _split(parts["all"], source)
    if "validation" not in parts:
        parts |= _carve(parts["train"])
        notes.append(f"Validation is {CARVED:.0%} of the train texts: the data has no part for it.")
    splits = DatasetDict({split: _rows(parts[split], split, path) for split in SPLITS})
    check_answers(splits["train"], head, str(path))
    return TaskData("custom", head, splits, tuple(notes))


def _labels(tables: Mapping[str, Path], source: Source) -> tuple[str, ...]:
    """The names of the classes: as declared, or all that occur, sorted."""
    kind = kind_of(source)
    if source.labels or kind in ("regression", "features"):
        return source.labels or ()
    found: set[str] = set()
    for file in tables.values():
        for where, cells in read_table(file, [source.label]):
            answer: Any = answer_of(where, cells, source)
            found.update([answer] if kind == "classification" else answer)
    for label in source.drop_labels:
        if label not in found:
            raise DataError(f"data.drop_labels: {unknown('label', label, sorted(found))}")
    labels = tuple(sorted(found.difference(source.drop_labels)))
    if not labels:
        raise DataError(f"{', '.join(map(str, tables.values()))}: no row has a label. Add some.")
    return labels


def _write(file: Path, source: Source, head: Head, left_out: Counter[str]) -> _Part:
    """Check the rows and put them on disk; count in `left_out` those that do not count."""
    keys, strata = array("Q"), array("q")
    handle, arrow = tempfile.mkstemp(suffix=".arrow", dir=_scratch())
    os.close(handle)
    stratified = head.kind == "classification"
    features = features_of(head, second=bool(source.text_pair or source.question))
    examples = _usable(file, source, left_out)
    with ArrowWriter(features=features, path=arrow) as writer:
        while chunk := list(islice(examples, CHUNK)):
            encoded = [encode(row, head) for row in chunk]
            writer.write_batch({name: [row[name] for row in encoded] for name in features})
            keys.extend(text_key(_identity(row), source.split.seed) for row in chunk)
            strata.extend(row["label"] if stratified else 0 for row in encoded)
        if not keys:
            raise DataError(f"{file} holds no rows. Every split needs at least one.")
        writer.finalize()
    texts, classes = np.frombuffer(keys, np.uint64), np.frombuffer(strata, np.int64)
    part = _Part(Dataset.from_file(arrow), texts, classes, np.arange(len(keys)))
    if source.cleaning and source.cleaning.duplicates:
        part = replace(part, chosen=np.flatnonzero(first_of_each(part.keys)))
        left_out["rows that repeat an earlier text"] += len(keys) - len(part.chosen)
    return part


def _usable(file: Path, source: Source, left_out: Counter[str]) -> Iterator[Example]:
    """The rows of a file but for dropped labels and for texts of which cleaning leaves nothing."""
    for where, cells in read_table(file, columns_of(source)):
        row = example_of(where, cells, source)
        if row.answer in source.drop_labels:
            left_out[f"rows with the label {row.answer}"] += 1
        elif source.cleaning and "" in (row.first, row.second):
            left_out["rows without text after cleaning"] += 1
        else:
            yield row


def _identity(row: Example) -> str:
    """One text for the texts or words of a row; NUL stands in none of them."""
    parts = (part for part in (row.first, row.second) if part is not None)
    return "\0\0".join(part if isinstance(part, str) else "\0".join(part) for part in parts)


def _split(part: _Part, source: Source) -> dict[str, _Part]:
    numbers = split_rows(part.keys[part.chosen], part.strata[part.chosen], source.split)
    if not source.split.validation:
        del numbers["validation"]
    return {split: replace(part, chosen=part.chosen[rows]) for split, rows in numbers.items()}


def _carve(train: _Part) -> dict[str, _Part]:
    """Train without, and validation from, some of the train texts."""
    taken = carve(train.keys[train.chosen], train.strata[train.chosen], CARVED)
    parts = {"train": train.chosen[~taken], "validation": train.chosen[taken]}
    return {split: replace(train, chosen=rows) for split, rows in parts.items()}


def _rows(part: _Part, split: str, path: Path) -> Dataset:
    if not len(part.chosen):
        raise DataError(
            f"{path}: the {split} split has no rows. Give it a larger share in data.split, or "
            f"pass a folder with one file per split."
        )
    return part.rows.select(part.chosen)


@cache
def _scratch() -> Path:
    """The folder of this process's Arrow files."""
    folder = Path(tempfile.mkdtemp(prefix="quantkit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
