"""Scores of every kind of answer, and how far a few hundred rows can be trusted to tell them.

`statistics` gives what a report shows, with counts per row for intervals; `scores`,
`per_class` and `confusion` give the details. References and predictions by kind of head:

kind             array
classification   int [rows]
aspects          int [rows, aspects]
multilabel       0 or 1 [rows, labels]
regression       float [rows]
words            a sequence over rows of int [words of that row]
features         float [rows, dim]; the references are another model's vectors

The package needs NumPy only; scikit-learn and `evaluate` are imported on first use,
so that a process which measures an exported model does not load a training framework.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantkit.heads import Head, Kind
from quantkit.metrics import chunks, classification, continuous
from quantkit.metrics.answers import Answers, cells
from quantkit.metrics.classification import ClassScores
from quantkit.metrics.resampling import Interval, Statistic, bootstrap, paired_bootstrap

if TYPE_CHECKING:
    from quantkit.metrics.modules import Aspects, Chunks, Classification

__all__ = [
    "MAIN",
    "Answers",
    "Aspects",
    "Chunks",
    "ClassScores",
    "Classification",
    "Interval",
    "Statistic",
    "agreement",
    "bootstrap",
    "confusion",
    "main_score",
    "paired_bootstrap",
    "per_class",
    "scores",
    "statistics",
]

# The score that a model of this kind is chosen and reported by.
MAIN: Mapping[Kind, str] = MappingProxyType(
    {
        "classification": "macro_f1",
        "aspects": "macro_f1",
        "multilabel": "macro_f1",
        "regression": "pearson",
        "words": "chunk_f1",
        "features": "cosine",
    }
)
_CONTINUOUS = ("regression", "features")


def statistics(head: Head, references: Answers, predictions: Answers) -> dict[str, Statistic]:
    """The scores that get intervals, `MAIN[head.kind]` first.

    kind             scores
    classification   macro_f1 over the classes that occur, accuracy
    aspects          the same of all aspects' labels in one list, as IndoNLU scores them
    multilabel       macro_f1 over all labels, accuracy (rows without a wrong label)
    regression       pearson, rmse
    words            chunk_f1: CoNLL's per chunk type, then the mean over the types that
                     occur; accuracy of words
    features         cosine: the mean over rows

    A share of nothing counts as 0, and so does the correlation of a constant.

    Raises:
        ValueError: no rows, unequal shapes, ids outside the labels, or tags that are not
            of the form B-TYPE, I-TYPE, O.
    """
    if head.kind == "words":
        return chunks.statistics(head, references, predictions)
    if head.kind in _CONTINUOUS:
        return continuous.statistics(head, references, predictions)
    return classification.statistics(head, references, predictions)


def main_score(head: Head, references: Answers, predictions: Answers) -> float:
    """The value of `MAIN[head.kind]`; raises what `statistics` raises."""
    return statistics(head, references, predictions)[MAIN[head.kind]].value


def scores(head: Head, references: Answers, predictions: Answers) -> dict[str, float]:
    """Every score of the kind, without intervals; raises what `statistics` raises.

    kind                                  scores
    classification, aspects, multilabel   accuracy; macro_ and weighted_ precision, recall, f1
    words                                 chunk_precision, chunk_recall, chunk_f1 (means over
                                          types), micro_f1 (of all chunks), accuracy of words
    regression                            pearson, spearman, rmse, mae
    features                              cosine
    """
    if head.kind == "words":
        return chunks.scores(head, references, predictions)
    if head.kind in _CONTINUOUS:
        return continuous.scores(head, references, predictions)
    return classification.scores(head, references, predictions)


def per_class(head: Head, references: Answers, predictions: Answers) -> tuple[ClassScores, ...]:
    """Scores of each label, in the head's order, or of each chunk type, in order of its labels.

    A name that occurs nowhere has zeros. Regression and features have no classes: the
    result is empty. Raises what `statistics` raises.
    """
    if head.kind in _CONTINUOUS:
        return ()
    if head.kind == "words":
        return chunks.per_class(head, references, predictions)
    return classification.per_class(head, references, predictions)


def confusion(head: Head, references: Answers, predictions: Answers) -> list[list[int]] | None:
    """Counts [reference][prediction] of rows, aspects or words; None for the other kinds.

    Raises:
        ValueError: no rows, unequal shapes, or ids outside the labels.
    """
    if head.kind not in ("classification", "aspects", "words"):
        return None
    return classification.confusion(cells(head, references, predictions), len(head.labels))


def agreement(head: Head, a: Answers, b: Answers) -> float:
    """How nearly two models answer alike, 1.0 if they do.

    The share of equal decisions (rows of a classification, cells of aspects and labels,
    words), the mean cosine of features, the Pearson correlation of regressions.

    Raises:
        ValueError: no rows, unequal shapes, or ids outside the labels.
    """
    if head.kind in _CONTINUOUS:
        return main_score(head, a, b)
    found = cells(head, a, b)
    return float((found.references == found.predictions).sum() / max(found.rows.size, 1))


if not TYPE_CHECKING:  # a type checker reads the names above and still finds misspelt ones

    def __getattr__(name: str) -> Any:  # noqa: ANN401
        """Import the modules of `evaluate` when one is wanted."""
        if name in ("Aspects", "Chunks", "Classification"):
            from quantkit.metrics import modules

            return getattr(modules, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
