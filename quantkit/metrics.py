"""Scores of a classifier, and how far a few hundred texts can be trusted to tell them.

The module itself needs NumPy only; scikit-learn and `evaluate` are imported on first use,
so that a process which measures an exported model does not load a training framework.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "accuracy",
    "agreement",
    "bootstrap",
    "classification_scores",
    "macro_f1",
    "paired_bootstrap",
]

Labels = NDArray[np.integer[Any]]  # [texts]: class ids, 0 and up
Counts = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]
Score = Callable[[Counts], Scores]  # [..., classes, classes] -> [...]


@dataclass(frozen=True)
class Interval:
    """A value and the range in which it would lie for other texts of the same kind."""

    value: float
    low: float
    high: float


def classification_scores(
    references: Labels, predictions: Labels, classes: int
) -> dict[str, float]:
    """Scores of `predictions` [texts] against `references` [texts], computed by scikit-learn.

    The keys are `accuracy`; `macro_precision`, `macro_recall`, `macro_f1`, `weighted_f1` over
    the classes that occur in either array; and `precision_i`, `recall_i`, `f1_i` of each of
    the `classes`. A share of nothing counts as 0.

    Raises:
        ValueError: no texts, arrays of different shapes, or an id outside 0 to classes - 1.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    _check(references, predictions, classes)
    scores = {"accuracy": float(accuracy_score(references, predictions))}
    options: dict[str, Any] = {"y_true": references, "y_pred": predictions, "zero_division": 0.0}
    macro = precision_recall_fscore_support(average="macro", **options)
    scores |= {f"macro_{name}": float(macro[at]) for at, name in enumerate(_PARTS)}
    weighted = precision_recall_fscore_support(average="weighted", **options)
    scores["weighted_f1"] = float(weighted[2])
    each = precision_recall_fscore_support(labels=list(range(classes)), **options)
    for at, name in enumerate(_PARTS):
        scores |= {f"{name}_{label}": float(each[at][label]) for label in range(classes)}
    return scores


_PARTS = ("precision", "recall", "f1")


def accuracy(confusion: Counts) -> Scores:
    """Share of right answers of each confusion matrix [..., reference, prediction]."""
    return np.asarray(_hits(confusion).sum(-1) / confusion.sum((-2, -1)))


def macro_f1(confusion: Counts) -> Scores:
    """Mean F1 of each confusion matrix [..., reference, prediction].

    The mean is over the classes that occur as a reference or a prediction, as
    scikit-learn's `f1_score(average="macro")` takes it.
    """
    # F1 = 2 TP / (2 TP + FP + FN); the denominator counts a class's references and predictions.
    occurrences = confusion.sum(-1) + confusion.sum(-2)
    each = 2 * _hits(confusion) / np.maximum(occurrences, 1)
    return np.asarray(each.sum(-1) / (occurrences > 0).sum(-1))


def bootstrap(
    references: Labels,
    predictions: Labels,
    score: Score,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`score` of `predictions` [texts] with its percentile bootstrap interval.

    Raises:
        ValueError: no texts, or arrays of different shapes.
    """
    observed, drawn = _resample(references, [predictions], draws, seed)
    return _interval(float(score(observed[0])), score(drawn[0]), level)


def paired_bootstrap(
    references: Labels,
    a: Labels,
    b: Labels,
    score: Score,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`score` of `b` minus `score` of `a` with its percentile bootstrap interval.

    Every draw takes the same texts for both, so that what both find hard cancels out. All
    three arrays are [texts].

    Raises:
        ValueError: no texts, or arrays of different shapes.
    """
    observed, drawn = _resample(references, [a, b], draws, seed)
    difference = float(score(observed[1]) - score(observed[0]))
    return _interval(difference, score(drawn[1]) - score(drawn[0]), level)


def agreement(a: Labels, b: Labels) -> float:
    """Share of equal labels of two arrays [texts].

    Raises:
        ValueError: no texts, or arrays of different shapes.
    """
    _check(a, b)
    return float(np.mean(a == b))


def _hits(confusion: Counts) -> Counts:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _check(references: Labels, predictions: Labels, classes: int | None = None) -> None:
    if references.shape != predictions.shape or references.ndim != 1 or not references.size:
        raise ValueError(
            f"expected two arrays [texts] of one length, at least 1; found shapes "
            f"{references.shape} and {predictions.shape}."
        )
    low = min(references.min(), predictions.min())
    high = max(references.max(), predictions.max())
    if low < 0 or (classes is not None and high >= classes):
        raise ValueError(f"class ids from {low} to {high} do not fit {classes} classes from 0.")


def _resample(
    references: Labels, candidates: list[Labels], draws: int, seed: int
) -> tuple[Counts, Counts]:
    """Confusion matrices of the texts [candidates, classes, classes] and of the draws.

    Texts with the same reference and the same predictions are interchangeable. Drawing
    texts with replacement therefore is one multinomial draw over these kinds of text, and
    the draws' matrices [candidates, draws, classes, classes] need no array [draws, texts].
    """
    for predictions in candidates:
        _check(references, predictions)
    kinds, counts = np.unique(np.stack([references, *candidates]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(references.size, counts / references.size, size=draws)
    classes = int(kinds.max()) + 1
    pairs = [kinds[0] * classes + predictions for predictions in kinds[1:]]
    observed = [_confusion(pair, counts[None], classes)[0] for pair in pairs]
    return np.stack(observed), np.stack([_confusion(pair, drawn, classes) for pair in pairs])


def _confusion(pair: Labels, counts: Counts, classes: int) -> Counts:
    """Add up `counts` [draws, kinds] where `pair` [kinds] = reference * classes + prediction."""
    draws, cells = counts.shape[0], classes * classes
    places = np.arange(draws)[:, None] * cells + pair
    sums = np.bincount(places.ravel(), weights=counts.ravel(), minlength=draws * cells)
    return sums.astype(np.int64).reshape(draws, classes, classes)


def _interval(value: float, drawn: Scores, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


@cache
def _classification() -> type:
    """Define the module when it is wanted: its base class needs the import of `evaluate`."""
    import datasets
    import evaluate

    class Classification(evaluate.Metric):  # type: ignore[misc]
        """`classification_scores` as a module of `evaluate`; it needs no download."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Accuracy, macro and weighted F1, and the scores of each class.",
                citation="",
                inputs_description="predictions, references: class ids; classes: their number.",
                features=datasets.Features(
                    {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
                ),
            )

        def _compute(
            self, predictions: list[int], references: list[int], classes: int
        ) -> dict[str, float]:
            return classification_scores(np.array(references), np.array(predictions), classes)

    Classification.__qualname__ = "Classification"
    return Classification


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "Classification":
        return _classification()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
