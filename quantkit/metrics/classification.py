"""Scores of decisions among labels: classification, aspects, multilabel.

All come from three counts of a class: cells that have it as reference and as prediction,
as reference, as prediction. Chunks are counted the same way, one type being one class.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.heads import Head
from quantkit.metrics.answers import Answers, Cells, Ids, Values, cells
from quantkit.metrics.resampling import Counts, Score, Statistic

__all__ = [
    "PARTS",
    "ClassScores",
    "accuracy_statistic",
    "class_scores",
    "confusion",
    "f1_statistic",
    "mean_f1",
    "occurring_f1",
    "per_class",
    "scores",
    "share",
    "shares",
    "statistics",
    "tally",
]

PARTS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class; `support` is the number of its references."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def statistics(head: Head, references: Answers, predictions: Answers) -> dict[str, Statistic]:
    """`macro_f1` and `accuracy`; see `quantkit.metrics.statistics`."""
    found = cells(head, references, predictions)
    multilabel = head.kind == "multilabel"
    f1 = f1_statistic(_outcomes(head, found), mean_f1 if multilabel else occurring_f1)
    return {"macro_f1": f1, "accuracy": accuracy_statistic(found, whole_rows=multilabel)}


def scores(head: Head, references: Answers, predictions: Answers) -> dict[str, float]:
    """Accuracy, macro and weighted precision, recall and F1, computed by scikit-learn."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    found = cells(head, references, predictions)
    sides = {"y_true": found.references, "y_pred": found.predictions}
    options: dict[str, Any] = {"zero_division": 0.0}
    if head.kind == "multilabel":
        # A column of zeros, left out by `labels`: scikit-learn takes an array [rows, 1] for
        # classes 0 and 1.
        sides = {k: np.pad(_by_label(head, v), ((0, 0), (0, 1))) for k, v in sides.items()}
        options["labels"] = list(range(len(head.labels)))
    answer = {"accuracy": float(accuracy_score(**sides))}
    for average in ("macro", "weighted"):
        parts = precision_recall_fscore_support(**sides, **options, average=average)
        answer |= {f"{average}_{part}": float(parts[at]) for at, part in enumerate(PARTS)}
    return answer


def per_class(head: Head, references: Answers, predictions: Answers) -> tuple[ClassScores, ...]:
    """The scores of each of the head's labels."""
    outcomes = _outcomes(head, cells(head, references, predictions))
    return class_scores(head.labels, outcomes.sum(0))


def confusion(found: Cells, classes: int) -> list[list[int]]:
    """Number of cells [reference][prediction]."""
    matrix: list[list[int]] = tally(found.references, found.predictions, classes, classes).tolist()
    return matrix


def class_scores(names: tuple[str, ...], outcomes: Counts) -> tuple[ClassScores, ...]:
    """One per name of `outcomes` [names, 3]: hits, references, predictions."""
    precision, recall, f1 = shares(outcomes)
    return tuple(
        ClassScores(name, float(precision[at]), float(recall[at]), float(f1[at]), int(support))
        for at, (name, support) in enumerate(zip(names, outcomes[:, 1], strict=True))
    )


def shares(outcomes: Counts) -> tuple[Values, Values, Values]:
    """Precision, recall and F1 [...] of `outcomes` [..., 3]: hits, references, predictions.

    2 hits, 3 references and 4 predictions are 2/4, 2/3 and 4/7.
    """
    hits, references, predictions = np.moveaxis(outcomes, -1, 0)
    f1 = share(2 * hits, references + predictions)
    return share(hits, predictions), share(hits, references), f1


def share(part: Counts, whole: Counts) -> Values:
    """`part / whole` of counts; 0 of nothing."""
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)


def f1_statistic(outcomes: Counts, score: Score) -> Statistic:
    """`score`, a mean F1, of each row's `outcomes` [rows, classes, 3]."""
    rows, classes, parts = outcomes.shape
    return Statistic(outcomes.reshape(rows, classes * parts), score)


def occurring_f1(counts: Counts) -> Values:
    """Mean F1 [...] of `counts` [..., classes * 3] over the classes that occur.

    A class occurs as a reference or as a prediction; scikit-learn's
    `f1_score(average="macro")` takes the same mean.
    """
    outcomes = _by_class(counts)
    occurring = (outcomes[..., 1:].sum(-1) > 0).sum(-1)
    return share(shares(outcomes)[2].sum(-1), occurring)


def mean_f1(counts: Counts) -> Values:
    """Mean F1 [...] of `counts` [..., labels * 3] over all labels.

    A label that does not occur has F1 0, as in scikit-learn's macro average of several
    labels per row.
    """
    return np.asarray(shares(_by_class(counts))[2].mean(-1))


def accuracy_statistic(found: Cells, *, whole_rows: bool = False) -> Statistic:
    """The share of right cells, or of rows whose cells are all right."""
    right = tally(found.rows, found.references == found.predictions, found.count, 2)[:, 1]
    total = np.bincount(found.rows, minlength=found.count)
    if whole_rows:
        right, total = (right == total).astype(np.int64), np.ones_like(total)
    return Statistic(np.stack([right, total], axis=1), _first_of_second)


def tally(rows: Ids, columns: NDArray[np.integer[Any] | np.bool_], height: int, width: int) -> Ids:
    """How often each pair occurs: int64 [height, width] of two arrays [pairs]."""
    counts = np.bincount(rows * width + columns, minlength=height * width)
    return counts.reshape(height, width)


def _outcomes(head: Head, found: Cells) -> Ids:
    """Hits, references and predictions of each row and class: int64 [rows, classes, 3]."""
    if head.kind == "multilabel":
        references = _by_label(head, found.references)
        predictions = _by_label(head, found.predictions)
        return np.stack([references * predictions, references, predictions], axis=-1)
    right = found.references == found.predictions
    sides = [
        (found.rows[right], found.references[right]),
        (found.rows, found.references),
        (found.rows, found.predictions),
    ]
    return np.stack([tally(*side, found.count, len(head.labels)) for side in sides], axis=-1)


def _by_label(head: Head, ids: Ids) -> Ids:
    return ids.reshape(-1, len(head.labels))


def _by_class(counts: Counts) -> Counts:
    return counts.reshape(*counts.shape[:-1], counts.shape[-1] // 3, 3)


def _first_of_second(counts: Counts) -> Values:
    return share(counts[..., 0], counts[..., 1])
