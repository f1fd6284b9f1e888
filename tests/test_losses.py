from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit.batching import IGNORED
from quantkit.heads import Head
from quantkit.losses import loss_sum
from tests.training import FEATURES, MULTILABEL, REGRESSION, TRAINABLE

TWO = Head("classification", ("no", "yes"))
ASPECTS = Head("aspects", ("no", "yes"), ("food", "price"))
WORDS = Head("words", ("O", "B-X"))

# Of logits (ln 3, 0) the probabilities are 3/4 and 1/4; sigmoid(ln 3) is 3/4.
LN3 = log(3)
BY_HAND: dict[str, tuple[Head, object, object, float]] = {
    "even": (TWO, [[0.0, 0.0]], [1], log(2)),
    "uneven": (TWO, [[0.0, 0.0], [LN3, 0.0], [LN3, 0.0]], [0, 0, 1], log(2 * 4 / 3 * 4)),
    "aspects": (ASPECTS, [[LN3, 0.0, 0.0, 0.0]], [[1, 0]], log(4 * 2)),
    "aspects of rows": (ASPECTS, [[LN3, 0.0, 0.0, LN3]] * 2, [[0, 0], [1, 1]], 2 * log(16 / 3)),
    "labels": (MULTILABEL, [[0.0, LN3, LN3]], [[1, 1, 0]], log(2 * 4 / 3 * 4)),
    "values": (REGRESSION, [[1.0], [3.0]], [0.5, 5.0], 0.25 + 4),
    "words": (WORDS, [[[LN3, 0.0], [0.0, 0.0]]], [[1, 0]], log(4 * 2)),
    "some words": (WORDS, [[[LN3, 0.0], [9.0, 9.5]]], [[1, IGNORED]], log(4)),
    "no words": (WORDS, [[[LN3, 0.0]]], [[IGNORED]], 0.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_by_hand(name: str) -> None:
    head, logits, labels, expected = BY_HAND[name]
    found = loss_sum(head, torch.tensor(logits), torch.tensor(labels))
    assert (found.shape, found.dtype) == ((), torch.float32)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_logits_of_16_bits_are_summed_in_32() -> None:
    """1,000 losses of ln 2 add up to 693.1; bfloat16 knows 692 and 696."""
    logits = torch.zeros(1000, 2, dtype=torch.bfloat16)
    found = loss_sum(TWO, logits, torch.zeros(1000, dtype=torch.int64))
    assert float(found) == pytest.approx(1000 * log(2), rel=1e-6)


def test_labels_of_64_bits_leave_the_loss_in_32() -> None:
    values = torch.tensor([0.1], dtype=torch.float64)
    assert loss_sum(REGRESSION, torch.zeros(1, 1), values).dtype == torch.float32


def test_features_have_no_loss() -> None:
    with pytest.raises(ValueError, match="kind features has no loss"):
        loss_sum(FEATURES, torch.zeros(1, 4), torch.zeros(1))


def draw(head: Head, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random logits and labels as `collate` shapes them; half of the words are ignored."""
    random = np.random.default_rng(seed)
    shape = (rows, 5, head.outputs) if head.kind == "words" else (rows, head.outputs)
    logits = torch.from_numpy(random.normal(0, 3, shape).astype(np.float32))
    if head.kind == "regression":
        return logits, torch.from_numpy(random.normal(size=rows))
    shapes = {"aspects": (rows, 2), "multilabel": (rows, 3), "words": (rows, 5)}
    classes = 2 if head.kind == "multilabel" else len(head.labels)
    labels = random.integers(0, classes, shapes.get(head.kind, (rows,)))
    if head.kind == "words":
        labels[random.random(labels.shape) < 0.5] = IGNORED
    return logits, torch.from_numpy(labels)


@settings(deadline=None)
@given(
    st.sampled_from(TRAINABLE),
    st.integers(1, 12),
    st.lists(st.integers(0, 12), max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_a_sum_over_parts_is_the_sum_over_the_whole(
    head: Head, rows: int, cuts: list[int], seed: int
) -> None:
    logits, labels = draw(head, rows, seed)
    edges = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    parts = [slice(*pair) for pair in pairwise(edges)]
    total = sum(float(loss_sum(head, logits[part], labels[part])) for part in parts)
    assert total == pytest.approx(float(loss_sum(head, logits, labels)), rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(st.sampled_from(TRAINABLE), st.integers(0, 2**32 - 1))
def test_every_label_counts_and_no_ignored_one_does(head: Head, seed: int) -> None:
    logits, labels = draw(head, 4, seed)
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_sum(head, logits, labels), [logits])
    width = 1 if head.kind in ("multilabel", "regression") else len(head.labels)
    moved = gradient.reshape(-1, width).abs().amax(-1) > 0
    assert torch.equal(moved, labels.reshape(-1) != IGNORED)
