"""Scores of every kind: the order, the interface, what is refused, what is imported."""

import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest

from quantkit import metrics
from quantkit.heads import Head, Kind
from quantkit.metrics import (
    MAIN,
    Answers,
    agreement,
    confusion,
    main_score,
    per_class,
    scores,
    statistics,
)

HEADS = {
    "classification": Head("classification", ("a", "b", "c")),
    "aspects": Head("aspects", ("neg", "pos"), ("price", "taste")),
    "multilabel": Head("multilabel", ("x", "y")),
    "regression": Head("regression"),
    "words": Head("words", ("O", "B-PER", "I-PER")),
    "features": Head("features"),
}
# Three rows of each kind; row 1 of the predictions differs from row 1 of the references.
REFERENCES: dict[str, Answers] = {
    "classification": np.array([0, 1, 2]),
    "aspects": np.array([[0, 1], [1, 0], [1, 1]]),
    "multilabel": np.array([[0, 1], [1, 0], [1, 1]]),
    "regression": np.array([0.0, 1.0, 2.0]),
    "words": [np.array([1, 2]), np.array([0, 1, 0]), np.array([], dtype=np.int64)],
    "features": np.eye(3),
}
PREDICTIONS: dict[str, Answers] = {
    "classification": np.array([0, 0, 2]),
    "aspects": np.array([[0, 1], [1, 1], [1, 1]]),
    "multilabel": np.array([[0, 1], [0, 0], [1, 1]]),
    "regression": np.array([0.0, 2.0, 1.0]),
    "words": [np.array([1, 2]), np.array([0, 0, 0]), np.array([], dtype=np.int64)],
    "features": np.array([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]),
}
KINDS = pytest.mark.parametrize("kind", get_args(Kind))


@KINDS
def test_the_main_score_comes_first_and_agrees_with_the_full_list(kind: Kind) -> None:
    head, references, predictions = HEADS[kind], REFERENCES[kind], PREDICTIONS[kind]
    found = statistics(head, references, predictions)
    every = scores(head, references, predictions)
    assert next(iter(found)) == MAIN[kind]
    assert {name: x.value for name, x in found.items()} == pytest.approx(
        {name: every[name] for name in found}
    )
    assert main_score(head, references, predictions) == found[MAIN[kind]].value
    assert all(len(x.counts) == 3 for x in found.values())


@KINDS
def test_equal_answers_have_the_highest_scores(kind: Kind) -> None:
    head, references = HEADS[kind], REFERENCES[kind]
    every = scores(head, references, references)
    errors = {name: every.pop(name) for name in ("rmse", "mae") if name in every}
    assert every == dict.fromkeys(every, 1.0)
    assert errors == dict.fromkeys(errors, 0.0)
    assert agreement(head, references, references) == 1.0


def test_agreement() -> None:
    """2 of 3 rows, 5 of 6 cells, 5 of 6 labels, 4 of 5 words; (1 + 4/5 + 0) / 3."""
    expected = {
        "classification": 2 / 3,
        "aspects": 5 / 6,
        "multilabel": 5 / 6,
        "regression": 0.5,
        "words": 4 / 5,
        "features": 0.6,
    }
    found = {k: agreement(HEADS[k], REFERENCES[k], PREDICTIONS[k]) for k in expected}
    assert found == pytest.approx(expected)


def test_what_has_no_classes_has_no_table() -> None:
    for kind in ("regression", "features"):
        assert per_class(HEADS[kind], REFERENCES[kind], PREDICTIONS[kind]) == ()
    for kind in ("regression", "features", "multilabel"):
        assert confusion(HEADS[kind], REFERENCES[kind], PREDICTIONS[kind]) is None


WORDS = [np.array([0, 1]), np.array([2])]


@pytest.mark.parametrize(
    ("kind", "references", "predictions", "message"),
    [
        ("classification", [0, 1], [0], r"two arrays \[rows\].* \(2,\) and \(1,\)"),
        ("classification", [], [], "at least 1 row"),
        ("classification", [[0]], [[0]], r"two arrays \[rows\]"),
        ("classification", [0, 3], [0, 1], "row 1 holds the class id 3; 3 classes"),
        ("classification", [0, 1], [-1, 1], "row 0 holds the class id -1"),
        ("classification", [0.0, 1.0], [0, 1], "integers; found float64"),
        ("aspects", [[0], [1]], [[0], [1]], r"two arrays \[rows, 2\]"),
        ("aspects", [[0, 0], [1, 2]], [[0, 0], [1, 1]], "row 1 holds the class id 2"),
        ("multilabel", [[0, 2]], [[0, 1]], "row 0 holds the class id 2; 2 classes"),
        ("multilabel", [[0, 1, 1]], [[0, 1, 1]], r"two arrays \[rows, 2\]"),
        ("regression", [[1.0]], [[1.0]], r"two arrays \[rows\]"),
        ("regression", [], [], "at least 1 row"),
        ("regression", [1.0, 2.0], [1.0, np.nan], "row 1 holds a number that is not finite"),
        ("features", [1.0], [1.0], r"two arrays \[rows, dim\]"),
        ("features", [[1.0, 2.0]], [[1.0]], r"two arrays \[rows, dim\]"),
        ("words", WORDS, WORDS[:1], "as many rows, at least 1; found 2 and 1"),
        ("words", [], [], "at least 1; found 0 and 0"),
        ("words", WORDS, [[0, 1], [2, 2]], r"row 1: .*shapes \(1,\) and \(2,\)"),
        ("words", [[[0]]], [[[0]]], "row 0: "),
        ("words", WORDS, [[0, 1], [3]], "row 1 holds the class id 3"),
    ],
)
def test_what_is_refused(
    kind: str, references: list[Any], predictions: list[Any], message: str
) -> None:
    sides: list[Any] = [references, predictions]
    if kind != "words":
        sides = [np.array(side) for side in sides]
    for score in (statistics, scores, main_score, agreement):
        with pytest.raises(ValueError, match=message):
            score(HEADS[kind], *sides)


def test_unknown_name() -> None:
    name = "Clasification"
    with pytest.raises(AttributeError, match=name):
        getattr(metrics, name)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(metrics, name) for name in metrics.__all__)


def test_import_needs_numpy_only() -> None:
    program = (
        "import sys, quantkit.metrics; "
        "heavy = {'torch', 'transformers', 'evaluate', 'sklearn', 'datasets', 'scipy'}; "
        "print(sorted(heavy & {*sys.modules}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
