"""Two sides' answers to the same rows, checked and in one form.

The sides are called references and predictions; they may also be two models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.heads import Head

__all__ = ["Answers", "Cells", "Ids", "Values", "cells", "values"]

Answers = NDArray[Any] | Sequence[NDArray[Any]]
Ids = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cells:
    """All decisions in one list: one per row, per aspect or label of a row, or per word.

    references, predictions   [cells]: class ids; 0 or 1 for multilabel
    rows                      [cells]: the row of each cell, ascending
    count                     number of rows
    """

    references: Ids
    predictions: Ids
    rows: Ids
    count: int


def cells(head: Head, references: Answers, predictions: Answers) -> Cells:
    """The decisions of a head that decides: every kind but regression and features.

    Raises:
        ValueError: no rows, unequal shapes, or ids outside the labels.
    """
    if head.kind == "words":
        found = _words(references, predictions)
    else:
        found = _table(head, references, predictions)
    classes = 2 if head.kind == "multilabel" else len(head.labels)
    for ids in (found.references, found.predictions):
        outside = (ids < 0) | (ids >= classes)
        if outside.any():
            at = int(outside.argmax())
            raise ValueError(
                f"row {found.rows[at]} holds the class id {ids[at]}; {classes} classes have "
                f"the ids 0 to {classes - 1}."
            )
    return found


def values(head: Head, references: Answers, predictions: Answers) -> tuple[Values, Values]:
    """The numbers [rows] of a regression or the vectors [rows, dim] of features.

    Raises:
        ValueError: no rows, unequal shapes, or numbers that are not finite.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (references, predictions)]
    dimensions = 1 if head.kind == "regression" else 2
    if sides[0].shape != sides[1].shape or sides[0].ndim != dimensions or not len(sides[0]):
        raise _shapes("[rows]" if dimensions == 1 else "[rows, dim]", sides)
    for side in sides:
        bad = ~np.isfinite(side.reshape(len(side), -1)).all(1)
        if bad.any():
            raise ValueError(f"row {int(bad.argmax())} holds a number that is not finite.")
    return sides[0], sides[1]


def _words(references: Answers, predictions: Answers) -> Cells:
    if len(references) != len(predictions) or not len(references):
        raise ValueError(
            f"expected two sequences of as many rows, at least 1; found {len(references)} and "
            f"{len(predictions)}."
        )
    sides = [[_ids(row) for row in side] for side in (references, predictions)]
    for at, (one, other) in enumerate(zip(*sides, strict=True)):
        if one.shape != other.shape or one.ndim != 1:
            raise ValueError(
                f"row {at}: expected two arrays [words] of one length; found shapes "
                f"{one.shape} and {other.shape}."
            )
    lengths = [len(row) for row in sides[0]]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return Cells(np.concatenate(sides[0]), np.concatenate(sides[1]), rows, len(lengths))


def _table(head: Head, references: Answers, predictions: Answers) -> Cells:
    sides = [_ids(side) for side in (references, predictions)]
    shape = sides[0].shape
    widths = {"aspects": (len(head.aspects),), "multilabel": (len(head.labels),)}
    width = widths.get(head.kind, ())
    if shape != sides[1].shape or not shape or not shape[0] or shape[1:] != width:
        raise _shapes(f"[{', '.join(['rows', *map(str, width)])}]", sides)
    rows = np.repeat(np.arange(shape[0]), sides[0].size // shape[0])
    return Cells(sides[0].ravel(), sides[1].ravel(), rows, shape[0])


def _ids(row: Any) -> Ids:  # noqa: ANN401
    ids = np.asarray(row)
    if ids.size and ids.dtype.kind not in "biu":  # NumPy calls an empty list float64
        raise ValueError(f"class ids are integers; found {ids.dtype}.")
    return ids.astype(np.int64)


def _shapes(wanted: str, sides: Sequence[NDArray[Any]]) -> ValueError:
    return ValueError(
        f"expected two arrays {wanted} of one shape, at least 1 row; found shapes "
        f"{sides[0].shape} and {sides[1].shape}."
    )
