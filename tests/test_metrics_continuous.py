"""Scores of numbers and vectors: by hand, against SciPy."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from quantkit.heads import Head
from quantkit.metrics import agreement, main_score, scores

VALUE, VECTOR = Head("regression"), Head("features")


def test_numbers_by_hand() -> None:
    """Ranks 1 2 3 4 and 1 2 4 3: Spearman 1 - 6 * 2 / (4 * 15); covariance 6, variances 5, 10."""
    found = scores(VALUE, np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0, 3.0]))
    expected = {"pearson": 6 / np.sqrt(50), "spearman": 0.8, "rmse": 1.0, "mae": 0.5}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_a_constant_correlates_with_nothing(constant: float) -> None:
    found = scores(VALUE, np.array([1.0, 2.0, 3.0]), np.full(3, constant))
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert main_score(VALUE, np.array([1.0]), np.array([2.0])) == 0.0


@given(arrays(np.float64, st.integers(2, 30).map(lambda n: (2, n)), elements=st.floats(-9, 9)))
@settings(deadline=None)
def test_agrees_with_scipy(both: NDArray[np.float64]) -> None:
    both = both.round(2)  # SciPy warns of inputs that are almost constant
    assume(np.ptp(both, axis=1).min() > 0)
    found = scores(VALUE, both[0], both[1])
    assert found["pearson"] == pytest.approx(pearsonr(both[0], both[1]).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(spearmanr(both[0], both[1]).statistic, abs=1e-9)


def test_a_far_origin_keeps_the_correlation() -> None:
    """Sums of squares of the numbers as they are would leave no digit of the variance."""
    x = np.random.default_rng(0).normal(size=500)
    y = x + np.random.default_rng(1).normal(size=500)
    far = main_score(VALUE, x + 1e7, 1e-3 * y - 1e5)
    assert far == pytest.approx(main_score(VALUE, x, y), abs=1e-6)


def test_vectors_by_hand() -> None:
    """Cosines 0.6, 0 of a zero vector, -1 whatever the lengths."""
    a = np.array([[3.0, 4.0], [1.0, 1.0], [1.0, 2.0]], dtype=np.float32)
    b = np.array([[1.0, 0.0], [0.0, 0.0], [-2.0, -4.0]], dtype=np.float32)
    assert scores(VECTOR, a, b) == pytest.approx({"cosine": (0.6 + 0.0 - 1.0) / 3})
    assert agreement(VECTOR, a, b) == main_score(VECTOR, a, b)
