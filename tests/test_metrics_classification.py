"""Scores of decisions: by hand, against scikit-learn, against published matrices."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from quantkit.heads import Head
from quantkit.metrics import ClassScores, confusion, main_score, per_class, scores, statistics

Labels = NDArray[np.int64]
FOUR = Head("classification", ("a", "b", "c", "d"))

# references 0 0 0 1 1 2, predictions 0 0 1 1 1 1; class 2 is never predicted, 3 never occurs
REFERENCES = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 1, 1])


def test_by_hand() -> None:
    expected = {
        "accuracy": 4 / 6,
        # over the three classes that occur; class 3 would drag them down
        "macro_precision": 0.5,
        "macro_recall": 5 / 9,
        "macro_f1": (0.8 + 2 / 3) / 3,
        "weighted_precision": (3 * 1.0 + 2 * 0.5) / 6,
        "weighted_recall": (3 * 2 / 3 + 2 * 1.0) / 6,
        "weighted_f1": (3 * 0.8 + 2 * 2 / 3) / 6,
    }
    assert scores(FOUR, REFERENCES, PREDICTIONS) == pytest.approx(expected)
    assert per_class(FOUR, REFERENCES, PREDICTIONS) == (
        ClassScores("a", 1.0, 2 / 3, 0.8, 3),
        ClassScores("b", 0.5, 1.0, 2 / 3, 2),
        ClassScores("c", 0.0, 0.0, 0.0, 1),
        ClassScores("d", 0.0, 0.0, 0.0, 0),
    )
    assert confusion(FOUR, REFERENCES, PREDICTIONS) == [
        [2, 1, 0, 0],
        [0, 2, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]


def test_aspects_are_one_list_of_labels() -> None:
    """IndoNLU's score: the two aspects' macro F1 apart would be 1 and 1/3."""
    head = Head("aspects", ("neg", "pos"), ("price", "taste"))
    references = np.array([[0, 1], [1, 1]])
    predictions = np.array([[0, 1], [1, 0]])
    # in one list 0 1 1 1 against 0 1 1 0: F1 of neg 2/3, of pos 4/5
    assert main_score(head, references, predictions) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert statistics(head, references, predictions)["accuracy"].value == 3 / 4
    assert [row.support for row in per_class(head, references, predictions)] == [1, 3]
    assert confusion(head, references, predictions) == [[1, 0], [1, 2]]


def test_several_labels_of_a_row() -> None:
    """The third label never occurs: it is a label of the mean all the same."""
    head = Head("multilabel", ("x", "y", "z"))
    references = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    predictions = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert main_score(head, references, predictions) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert statistics(head, references, predictions)["accuracy"].value == pytest.approx(1 / 3)
    assert per_class(head, references, predictions)[1] == ClassScores("y", 0.5, 1.0, 2 / 3, 1)


# Negatives and positives, right and wrong, of two models of one paper, 5,477 texts each.
PUBLISHED = {
    "BERT": ([[3735, 266], [332, 1144]], (0.8908, 0.8649, 0.8543, 0.8593)),
    "DistilBERT": ([[3723, 257], [539, 958]], (0.8547, 0.8310, 0.7877, 0.8050)),
}


def from_confusion(matrix: list[list[int]]) -> tuple[Labels, Labels]:
    cells = [(r, p, n) for r, row in enumerate(matrix) for p, n in enumerate(row)]
    counts = [n for _, _, n in cells]
    references = np.repeat([r for r, _, _ in cells], counts)
    return references, np.repeat([p for _, p, _ in cells], counts)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_confusion_matrices(model: str) -> None:
    matrix, expected = PUBLISHED[model]
    head, sides = Head("classification", ("negative", "positive")), from_confusion(matrix)
    names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    found = scores(head, *sides)
    assert [found[name] for name in names] == pytest.approx(expected, abs=5e-5)
    assert main_score(head, *sides) == pytest.approx(expected[3], abs=5e-5)
    assert confusion(head, *sides) == matrix


def check_against_scikit_learn(
    head: Head, sides: tuple[NDArray[Any], NDArray[Any]], answers: tuple[Labels, Labels]
) -> None:
    """`sides` is what scikit-learn is given, `answers` what quantkit is given."""
    options: dict[str, Any] = {"zero_division": 0.0}
    found = {name: x.value for name, x in statistics(head, *answers).items()}
    assert found["macro_f1"] == pytest.approx(f1_score(*sides, average="macro", **options))
    assert found["accuracy"] == pytest.approx(accuracy_score(*sides))
    every = scores(head, *answers)
    for average in ("macro", "weighted"):
        parts = precision_recall_fscore_support(*sides, average=average, **options)
        names = [f"{average}_{part}" for part in ("precision", "recall", "f1")]
        assert [every[name] for name in names] == pytest.approx(parts[:3])
    each = precision_recall_fscore_support(*sides, labels=range(len(head.labels)), **options)
    for row, *expected in zip(per_class(head, *answers), *each, strict=True):
        assert [row.precision, row.recall, row.f1, row.support] == pytest.approx(expected)


def pairs(high: int, shape: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Labels]:
    """References and predictions [2, ...] from 0 to `high`."""
    return arrays(np.int64, shape, elements=st.integers(0, high))


@given(pairs(3, st.integers(1, 40).map(lambda rows: (2, rows))))
@settings(deadline=None)
def test_classification_agrees_with_scikit_learn(both: Labels) -> None:
    check_against_scikit_learn(FOUR, (both[0], both[1]), (both[0], both[1]))
    expected = confusion_matrix(both[0], both[1], labels=range(4))
    assert confusion(FOUR, both[0], both[1]) == expected.tolist()


@given(pairs(2, array_shapes(min_dims=2, max_dims=2, max_side=12).map(lambda s: (2, *s))))
@settings(deadline=None)
def test_aspects_agree_with_scikit_learn(both: Labels) -> None:
    head = Head("aspects", ("neg", "neut", "pos"), tuple(map(str, range(both.shape[2]))))
    flat = both.reshape(2, -1)
    check_against_scikit_learn(head, (flat[0], flat[1]), (both[0], both[1]))


@given(pairs(1, st.tuples(st.just(2), st.integers(1, 12), st.integers(2, 5))))
@settings(deadline=None)
def test_several_labels_agree_with_scikit_learn(both: Labels) -> None:
    head = Head("multilabel", tuple(map(str, range(both.shape[2]))))
    check_against_scikit_learn(head, (both[0], both[1]), (both[0], both[1]))


@given(pairs(1, st.integers(1, 12).map(lambda rows: (2, rows, 1))))
@settings(deadline=None)
def test_one_label_is_the_positive_class(both: Labels) -> None:
    """scikit-learn would take [rows, 1] for two classes."""
    found = scores(Head("multilabel", ("spam",)), both[0], both[1])
    flat = both.reshape(2, -1)
    expected = f1_score(flat[0], flat[1], average="binary", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(expected)
    assert main_score(Head("multilabel", ("spam",)), both[0], both[1]) == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(accuracy_score(flat[0], flat[1]))
