"""The one shape every dataset has inside quantkit, and the checks on the way in.

A loader turns what it reads into `Example`s; `encode` checks one and gives its columns;
`build_task` does so for whole splits that fit into memory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from quantkit.data.naming import unknown
from quantkit.errors import DataError
from quantkit.heads import Head
from quantkit.tokenization import Inputs

__all__ = [
    "SPLITS",
    "Example",
    "TaskData",
    "build_task",
    "check_answers",
    "check_label",
    "encode",
    "features_of",
    "inputs_of",
    "references_of",
]

SPLITS = ("train", "validation", "test")
BATCH = 10_000  # labels taken from disk at once

Text = str | Sequence[str]  # a text, or the words of a sentence
Answer = str | float | Sequence[str] | None


@dataclass(frozen=True)
class TaskData:
    """A dataset.

    `notes` are statements about the data that every report on it has to repeat. Each split
    has these columns:

    kind             columns
    classification   text, optional text_pair, label (ClassLabel)
    aspects          text, label: a class id for each of head.aspects, in their order
    multilabel       text, optional text_pair, label: 0 or 1 for each of head.labels
    regression       text, optional text_pair, label (float)
    words            tokens, label: a class id for each token; optional question: words
    features         text, optional text_pair
    """

    name: str
    head: Head
    splits: DatasetDict  # "train", "validation", "test"
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; the position of a name is its class id."""
        return self.head.labels


@dataclass(frozen=True)
class Example:
    """One row as it was read, its labels by name.

    where    file and line, for messages
    first    the text; for words, the words of the sentence or passage
    answer   the label; for aspects and words one for each; for multilabel those that hold;
             for regression the number; None for features
    second   the other text of a pair; for words, the words of the question
    """

    where: str
    first: Text
    answer: Answer = None
    second: Text | None = None


def build_task(
    name: str,
    head: Head,
    rows: Mapping[str, Sequence[Example]],
    sources: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> TaskData:
    """Check the rows of the three splits and put them in columns.

    `sources` names, for messages, the file or folder each split was read from.

    Raises:
        DataError: a split without rows, a row that `encode` refuses, or a train split with
            one answer only.
    """
    splits = {split: _build_split(head, rows[split], sources[split]) for split in SPLITS}
    check_answers(splits["train"], head, sources["train"])
    return TaskData(name, head, DatasetDict(splits), notes)


def _build_split(head: Head, rows: Sequence[Example], source: str) -> Dataset:
    if not rows:
        raise DataError(f"{source} holds no rows. Every split needs at least one.")
    features = features_of(head, second=rows[0].second is not None)
    encoded = [encode(row, head) for row in rows]
    columns = {name: [row[name] for row in encoded] for name in features}
    return Dataset.from_dict(columns, features=features)


def features_of(head: Head, *, second: bool) -> Features:
    """The columns of a task's rows; `second`: they are pairs, or have questions."""
    words = List(Value("string"))
    ids = ClassLabel(names=list(head.labels)) if head.labels else None
    if head.kind == "words":
        question = {"question": words} if second else {}
        return Features({"tokens": words, **question, "label": List(ids)})
    labels = {
        "classification": ids,
        "aspects": List(ids, length=len(head.aspects)),
        "multilabel": List(Value("int64"), length=len(head.labels)),
        "regression": Value("float64"),
    }
    columns = {"text": Value("string")}
    if second:
        columns["text_pair"] = Value("string")
    if head.kind != "features":
        columns["label"] = labels[head.kind]
    return Features(columns)


def encode(row: Example, head: Head) -> dict[str, Any]:
    """The values of a row's columns, label ids in place of names.

    Raises:
        DataError: an empty text, a sentence without words, a character that is no text,
            an unknown label, or another number of labels than of words or aspects.
    """
    words = head.kind == "words"
    first, second = ("tokens", "question") if words else ("text", "text_pair")
    check = _check_words if words else _check_text
    check(row.first, "sentence" if words else first, row.where)
    values: dict[str, Any] = {first: row.first}
    if row.second is not None:
        check(row.second, second, row.where)
        values[second] = row.second
    if head.kind != "features":
        values["label"] = _encode_answer(row, head)
    return values


def _encode_answer(row: Example, head: Head) -> int | float | list[int]:
    answer: Any = row.answer
    if head.kind == "regression":
        return _number(answer, row.where)
    if head.kind == "classification":
        return check_label(answer, head.labels, row.where)
    if head.kind == "multilabel":
        held = {check_label(label, head.labels, row.where) for label in answer}
        return [int(at in held) for at in range(len(head.labels))]
    parts = row.first if head.kind == "words" else head.aspects
    if len(answer) != len(parts):
        what = "words" if head.kind == "words" else "aspects"
        raise DataError(
            f"{row.where}: {len(parts)} {what} but {len(answer)} labels. Each of the {what} "
            f"needs one label."
        )
    return [
        check_label(label, head.labels, row.where, f"{part!r} has an ")
        for part, label in zip(parts, answer, strict=True)
    ]


def check_label(label: str, labels: tuple[str, ...], where: str, before: str = "") -> int:
    """The class id of a label.

    Raises:
        DataError: not one of `labels`; the message names the nearest one.
    """
    try:
        return labels.index(label)
    except ValueError:
        raise DataError(f"{where}: {before}{unknown('label', label, labels)}") from None


def _number(value: Any, where: str) -> float:  # noqa: ANN401
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: the label is {value!r}. A regression label is a finite number.")
    return number


def _check_text(text: Any, name: str, where: str) -> None:  # noqa: ANN401
    if not text.strip():
        raise DataError(f"{where}: the {name} is empty. Remove the line or add a text.")
    _check_characters(text, name, where)


def _check_words(words: Any, name: str, where: str) -> None:  # noqa: ANN401
    if not words:
        raise DataError(f"{where}: the {name} has no words. Remove the row.")
    if "" in words:
        raise DataError(
            f"{where}: word {list(words).index('') + 1} of the {name} is empty. Remove it, and "
            f"its label."
        )
    _check_characters("".join(words), name, where)


def _check_characters(text: str, name: str, where: str) -> None:
    # isascii() spares almost every text the search for half a surrogate pair.
    lone = not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
    if "\0" in text or lone:
        found = "half a surrogate pair" if lone else "a NUL character"
        raise DataError(
            f"{where}: the {name} holds {found}, which is no text: {text[:60]!r}. Remove it."
        )


def check_answers(train: Dataset, head: Head, source: str) -> None:
    """Refuse a train split from which nothing can be learned.

    Raises:
        DataError: all rows, or for words all words, have the same answer.
    """
    if head.kind == "features":
        return
    seen: set[object] = set()
    for answers in _label_batches(train):
        for answer in answers:
            seen.update(answer if head.kind == "words" else [str(answer)])
        if len(seen) > 1:
            return
    what = "word" if head.kind == "words" else "row"
    raise DataError(
        f"{source}: every {what} of the train split has the same answer, so there is nothing "
        f"to learn. Add rows with another one."
    )


def _label_batches(rows: Dataset) -> Iterator[list[Any]]:
    """The labels of a split, of some rows at a time: far faster than row by row."""
    labels = rows["label"]
    for start in range(0, max(len(rows), 1), BATCH):
        yield labels[start : start + BATCH]


def _listed(head: Head) -> bool:
    return head.kind in ("aspects", "multilabel", "words")


def inputs_of(rows: Dataset, head: Head) -> Inputs:
    """What a model reads of a split; the columns stay on disk where the split does."""
    first, second = ("tokens", "question") if head.kind == "words" else ("text", "text_pair")
    return Inputs(rows[first], rows[second] if second in rows.column_names else None)


def references_of(rows: Dataset, head: Head) -> np.ndarray | list[np.ndarray]:
    """The right answers of a split.

    classification int64 [rows]; aspects int64 [rows, aspects]; multilabel int64
    [rows, labels]; regression float64 [rows]; words: an int64 array per row; features:
    float64 [0].
    """
    if head.kind == "features":
        return np.empty(0)
    if head.kind == "words":
        return [np.asarray(ids, np.int64) for batch in _label_batches(rows) for ids in batch]
    dtype = np.float64 if head.kind == "regression" else np.int64
    answers = np.concatenate([np.asarray(batch, dtype) for batch in _label_batches(rows)])
    width = len(head.aspects) if head.kind == "aspects" else len(head.labels)
    return answers.reshape(len(rows), width) if _listed(head) else answers
