"""Leaving test texts out that a model has been trained on."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset, DatasetDict

from quantkit.data.schema import TaskData, inputs_of
from quantkit.errors import DataError
from quantkit.heads import Head

__all__ = ["without_overlap"]

PUNCTUATION = re.compile(r"[^\w\s]|_")


def without_overlap(test_of: TaskData, trained_on: TaskData) -> TaskData:
    """`test_of` without the test rows whose text is in the train split of `trained_on`.

    Case, punctuation and white space make no difference. A note says how many were left out.

    Raises:
        DataError: no test row would be left.
    """
    seen = set(_normal_texts(trained_on.splits["train"], trained_on.head))
    test = test_of.splits["test"]
    new = [text not in seen for text in _normal_texts(test, test_of.head)]
    if not any(new):
        raise DataError(
            f"every test text of {test_of.name} is in the train split of {trained_on.name}. "
            f"Choose a task with other texts."
        )
    note = (
        f"{new.count(False)} of {len(new)} test texts were left out: they are in the train "
        f"split of {trained_on.name} too."
    )
    splits = DatasetDict({**test_of.splits, "test": test.select(np.flatnonzero(new))})
    return replace(test_of, splits=splits, notes=(*test_of.notes, note))


def _normal_texts(rows: Dataset, head: Head) -> Iterator[str]:
    inputs = inputs_of(rows, head)
    for at, first in enumerate(inputs.first):
        parts = [first] if inputs.second is None else [first, inputs.second[at]]
        yield "\n".join(_normal(part) for part in parts)


def _normal(text: str | Sequence[str]) -> str:
    joined = text if isinstance(text, str) else " ".join(text)
    return " ".join(PUNCTUATION.sub("", joined.lower()).split())
