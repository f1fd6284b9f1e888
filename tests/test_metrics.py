"""Scores: by hand, against scikit-learn, against published confusion matrices."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from quantkit import metrics
from quantkit.metrics import (
    Interval,
    accuracy,
    agreement,
    bootstrap,
    classification_scores,
    macro_f1,
    paired_bootstrap,
)

Labels = NDArray[np.int64]
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)

# references 0 0 0 1 1 2, predictions 0 0 1 1 1 1; class 2 is never predicted, 3 never occurs
REFERENCES = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 1, 1])


def columns(pairs: list[tuple[int, int]]) -> tuple[Labels, Labels]:
    both = np.array(pairs)
    return both[:, 0], both[:, 1]


def from_confusion(matrix: list[list[int]]) -> tuple[Labels, Labels]:
    cells = [(r, p, n) for r, row in enumerate(matrix) for p, n in enumerate(row)]
    counts = [n for _, _, n in cells]
    references = np.repeat([r for r, _, _ in cells], counts)
    return references, np.repeat([p for _, p, _ in cells], counts)


def matrix_of(references: Labels, predictions: Labels, classes: int = 5) -> Labels:
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (references, predictions), 1)
    return matrix


def test_by_hand() -> None:
    scores = classification_scores(REFERENCES, PREDICTIONS, classes=4)
    expected = {
        "accuracy": 4 / 6,
        "precision_0": 1.0,
        "recall_0": 2 / 3,
        "f1_0": 0.8,
        "precision_1": 0.5,
        "recall_1": 1.0,
        "f1_1": 2 / 3,
        **{f"{part}_{label}": 0.0 for part in ("precision", "recall", "f1") for label in (2, 3)},
        # over the three classes that occur; class 3 would drag them down
        "macro_precision": 0.5,
        "macro_recall": 5 / 9,
        "macro_f1": (0.8 + 2 / 3) / 3,
        "weighted_f1": (3 * 0.8 + 2 * 2 / 3) / 6,
    }
    assert scores == pytest.approx(expected)


# Negatives and positives, right and wrong, of two models of one paper, 5,477 texts each.
PUBLISHED = {
    "BERT": ([[3735, 266], [332, 1144]], (0.8908, 0.8649, 0.8543, 0.8593)),
    "DistilBERT": ([[3723, 257], [539, 958]], (0.8547, 0.8310, 0.7877, 0.8050)),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_confusion_matrices(model: str) -> None:
    matrix, expected = PUBLISHED[model]
    scores = classification_scores(*from_confusion(matrix), classes=2)
    names = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    assert [scores[name] for name in names] == pytest.approx(expected, abs=5e-5)
    assert float(accuracy(np.array(matrix))) == pytest.approx(expected[0], abs=5e-5)
    assert float(macro_f1(np.array(matrix))) == pytest.approx(expected[3], abs=5e-5)


@given(PAIRS)
@settings(deadline=None)
def test_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    references, predictions = columns(pairs)
    matrix = matrix_of(references, predictions)
    right = accuracy_score(references, predictions)
    macro = f1_score(references, predictions, average="macro", zero_division=0.0)
    assert float(accuracy(matrix)) == pytest.approx(right)
    assert float(macro_f1(matrix)) == pytest.approx(macro)
    assert bootstrap(references, predictions, macro_f1, draws=2).value == pytest.approx(macro)
    scores = classification_scores(references, predictions, classes=5)
    each = precision_recall_fscore_support(
        references, predictions, labels=range(5), zero_division=0.0
    )
    assert scores["macro_f1"] == pytest.approx(macro)
    assert [scores[f"recall_{label}"] for label in range(5)] == pytest.approx(list(each[1]))


@given(PAIRS)
@settings(deadline=None)
def test_identity(pairs: list[tuple[int, int]]) -> None:
    references, predictions = columns(pairs)
    assert agreement(references, references) == 1.0
    assert bootstrap(references, references, macro_f1, draws=20) == Interval(1.0, 1.0, 1.0)
    same = paired_bootstrap(references, predictions, predictions, macro_f1, draws=20)
    assert same == Interval(0.0, 0.0, 0.0)


def test_agreement_is_the_share_of_equal_labels() -> None:
    assert agreement(REFERENCES, PREDICTIONS) == pytest.approx(4 / 6)


def sample(rows: int = 400) -> tuple[Labels, Labels, Labels]:
    """References, a classifier that errs on 30 % and one that errs on 15 % of the texts."""
    random = np.random.default_rng(3)
    references = random.integers(0, 3, rows)
    other = (references + 1) % 3
    a = np.where(random.random(rows) < 0.30, other, references)
    b = np.where(random.random(rows) < 0.15, other, references)
    return references, a, b


@pytest.mark.parametrize("score", [accuracy, macro_f1])
def test_intervals_agree_with_drawing_rows(score: metrics.Score) -> None:
    """The oracle draws texts and calls the score on each draw's own labels."""
    references, a, b = sample()
    random = np.random.default_rng(11)
    single, paired = [], []
    for _ in range(2000):
        rows = random.integers(0, len(references), len(references))
        of_a = score(matrix_of(references[rows], a[rows], 3))
        single.append(of_a)
        paired.append(score(matrix_of(references[rows], b[rows], 3)) - of_a)
    found = bootstrap(references, a, score, draws=20000)
    assert (found.low, found.high) == pytest.approx(np.quantile(single, [0.025, 0.975]), abs=6e-3)
    found = paired_bootstrap(references, a, b, score, draws=20000)
    assert (found.low, found.high) == pytest.approx(np.quantile(paired, [0.025, 0.975]), abs=6e-3)


def test_pairing_cancels_what_both_find_hard() -> None:
    """One classifier repairs two errors of the other and shares the remaining 120."""
    references = np.zeros(400, dtype=np.int64)
    a = np.where(np.arange(400) < 122, 1, 0)
    b = np.where(np.arange(400) < 120, 1, 0)
    interval = paired_bootstrap(references, a, b, accuracy)
    assert interval.value == pytest.approx(2 / 400)
    assert interval.low >= 0.0
    assert interval.high <= 6 / 400


def test_interval_of_a_better_model_lies_above_zero_and_turns_with_the_order() -> None:
    references, a, b = sample()
    forward = paired_bootstrap(references, a, b, accuracy, seed=1)
    assert 0 < forward.low < forward.value < forward.high
    assert forward.value == pytest.approx(np.mean(b == references) - np.mean(a == references))
    backward = paired_bootstrap(references, b, a, accuracy, seed=1)
    assert backward.value == pytest.approx(-forward.value)


def test_seed_and_level() -> None:
    references, a, _ = sample()
    assert bootstrap(references, a, accuracy) == bootstrap(references, a, accuracy, seed=0)
    assert bootstrap(references, a, accuracy) != bootstrap(references, a, accuracy, seed=1)
    wide, narrow = (bootstrap(references, a, accuracy, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize(
    ("references", "predictions", "classes"),
    [([0, 1], [0], 2), ([], [], 2), ([0, 2], [0, 1], 2), ([0, 1], [-1, 1], 2), ([[0]], [[0]], 2)],
)
def test_unusable_arrays(references: list[Any], predictions: list[Any], classes: int) -> None:
    with pytest.raises(ValueError, match=r"expected two arrays|do not fit"):
        classification_scores(
            np.array(references, dtype=np.int64), np.array(predictions, dtype=np.int64), classes
        )


def test_module_of_evaluate(tmp_path: Path) -> None:
    module = metrics.Classification(cache_dir=str(tmp_path), keep_in_memory=True)
    found = module.compute(predictions=PREDICTIONS, references=REFERENCES, classes=4)
    assert found == pytest.approx(classification_scores(REFERENCES, PREDICTIONS, classes=4))
    module.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    module.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:])
    assert module.compute(classes=4) == pytest.approx(found)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="Clasification"):
        _ = metrics.Clasification


def test_import_needs_numpy_only() -> None:
    program = (
        "import sys, quantkit.metrics; "
        "heavy = {'torch', 'transformers', 'evaluate', 'sklearn', 'datasets'}; "
        "print(sorted(heavy & {*sys.modules}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
