"""Test (c) of the parity gate: two computations of the same answers, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.heads import Head

__all__ = ["Difference", "answer_rows", "difference"]

# Heads that give values have no labels to disagree on.
_LABELLED = frozenset({"classification", "aspects", "multilabel", "words"})


@dataclass(frozen=True)
class Difference:
    """How far answers are apart, over rows."""

    disagreements: int  # rows with another label
    size: float  # 99th percentile of a row's largest difference

    def worse(self, other: "Difference") -> "Difference":
        """The larger of each."""
        # Of sizes NaN counts as the larger.
        return Difference(
            max(self.disagreements, other.disagreements),
            float(np.maximum(self.size, other.size)),
        )


def answer_rows(head: Head, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The rows [rows, outputs] that a batch's output is compared by.

    Of words every token is a row, of features each text's mean over its tokens; padding,
    where `mask` [batch, length] is 0, is left out. Else a row is a text.
    """
    if head.kind == "words":
        return np.asarray(output[mask == 1])
    if head.kind == "features":
        weights = mask[..., None].astype(output.dtype)
        return np.asarray((output * weights).sum(1) / weights.sum(1))
    return output


def difference(
    head: Head, a: Sequence[np.ndarray], b: Sequence[np.ndarray], rounding: float
) -> Difference:
    """Compare the rows of batches `a` with those of `b`.

    A row that differs by at most `rounding` agrees, on whichever side of a tie it falls. The
    worst row is set aside: with two rows of rounding flips in a hundred, which of two equally
    sound computations meets them is chance.
    """
    if not a:
        return Difference(0, 0.0)
    first, second = np.concatenate(a), np.concatenate(b)
    largest = np.abs(first - second).max(axis=1)
    disagreements = 0
    if head.kind in _LABELLED:
        other = head.decide(first) != head.decide(second)
        other = other.reshape(len(other), -1).any(axis=1)
        # NaN compares false with everything: it is no rounding.
        disagreements = int((other & ~(largest <= rounding)).sum())
    rows = np.sort(largest)
    return Difference(disagreements, float(np.quantile(rows[:-1], 0.99)) if len(rows) > 1 else 0.0)
