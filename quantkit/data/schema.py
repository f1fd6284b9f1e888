"""The one shape every dataset has inside quantkit, and the checks on the way in."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from quantkit.errors import DataError

__all__ = ["SPLITS", "TaskData", "build_task"]

SPLITS = ("train", "validation", "test")

Rows = Sequence[tuple[str, str]]  # (text, name of the label)


@dataclass(frozen=True)
class TaskData:
    """A classification dataset.

    The position of a name in `labels` is its class id. Each split has the columns `text`
    (string) and `label` (ClassLabel over `labels`). `notes` are statements about the data
    that every report on it has to repeat.
    """

    name: str
    labels: tuple[str, ...]
    splits: DatasetDict  # "train", "validation", "test"
    notes: tuple[str, ...] = ()


def build_task(
    name: str,
    labels: tuple[str, ...],
    rows: Mapping[str, Rows],
    sources: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> TaskData:
    """Check the rows of the three splits and put them in columns.

    `sources` names, for messages, the file each split was read from: row i is its line i + 1.

    Raises:
        DataError: a split without rows, an empty text, or a label that is not in `labels`.
    """
    splits = {split: _build_split(labels, rows[split], sources[split]) for split in SPLITS}
    return TaskData(name, labels, DatasetDict(splits), notes)


def _build_split(labels: tuple[str, ...], rows: Rows, source: str) -> Dataset:
    if not rows:
        raise DataError(f"{source} holds no rows. Every split needs at least one text.")
    for line, (text, label) in enumerate(rows, start=1):
        if not text.strip():
            raise DataError(f"{source}:{line}: the text is empty. Remove the line or add a text.")
        if label not in labels:
            raise DataError(f"{source}:{line}: {_unknown_label(label, labels)}")
    columns = {
        "text": [text for text, _ in rows],
        "label": [labels.index(label) for _, label in rows],
    }
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(labels))})
    return Dataset.from_dict(columns, features=features)


def _unknown_label(label: str, labels: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(label.strip().lower(), labels, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown label {label!r}. Known labels: {', '.join(labels)}.{hint}"
