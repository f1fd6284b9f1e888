"""Test (c) of the parity gate: two computations of the same answers, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.heads import Head

__all__ = ["Difference", "answers", "difference"]

# Heads that give values have no labels to disagree on.
_LABELLED = frozenset({"classification", "aspects", "multilabel", "words"})


@dataclass(frozen=True)
class Difference:
    """How far answers are apart, over texts."""

    disagreements: int  # texts with another label
    size: float  # 99th percentile of a text's largest difference

    def worse(self, other: "Difference") -> "Difference":
        """The larger of each; of sizes NaN counts as the larger."""
        return Difference(
            max(self.disagreements, other.disagreements),
            float(np.maximum(self.size, other.size)),
        )


def answers(head: Head, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What is compared of a batch's output: of features each text's mean over its tokens.

    `mask` [batch, length] is 1 where a token stands. The result is [batch, outputs], or for
    words [batch, length, outputs].
    """
    if head.kind != "features":
        return output
    weights = mask[..., None].astype(output.dtype)
    return np.asarray((output * weights).sum(1) / weights.sum(1))


def difference(
    head: Head,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    tie: float,
) -> Difference:
    """Compare the answers of batches `a` with those of `b`, text by text.

    What differs by at most `tie` has the same label, on whichever side it falls. Of words a
    text counts once, with the worst of its tokens: attention carries one flip to all of them.
    The worst text is set aside: with two texts of rounding flips in a hundred, which of two
    equally sound computations meets them is chance.
    """
    if not a:
        return Difference(0, 0.0)
    texts = [_texts(head, *each, tie) for each in zip(a, b, masks, strict=True)]
    sizes = np.sort(np.concatenate([size for size, _ in texts]))[:-1]
    # "lower": one of the texts' own sizes, not a mixture of a sound and a flipped one.
    size = float(np.quantile(sizes, 0.99, method="lower")) if len(sizes) else 0.0
    return Difference(sum(int(labels.sum()) for _, labels in texts), size)


def _texts(
    head: Head, a: np.ndarray, b: np.ndarray, mask: np.ndarray, tie: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each text the largest difference, and whether a label differs: both [batch]."""
    sizes = np.abs(a - b).max(axis=-1)
    labels = np.zeros(sizes.shape, dtype=bool)
    if head.kind in _LABELLED:
        changed = head.decide(a) != head.decide(b)
        # NaN compares false with everything: it is no tie.
        labels = changed.reshape(*sizes.shape, -1).any(axis=-1) & ~(sizes <= tie)
    if head.kind != "words":
        return sizes, labels
    return np.where(mask == 1, sizes, 0.0).max(axis=1), (labels & (mask == 1)).any(axis=1)
