"""Bootstrap intervals of every kind, against a loop that draws rows."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.heads import Head
from quantkit.metrics import (
    MAIN,
    Answers,
    Interval,
    Statistic,
    bootstrap,
    main_score,
    paired_bootstrap,
    resampling,
    statistics,
)

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
HEADS = {
    "classification": Head("classification", ("a", "b", "c")),
    "aspects": Head("aspects", ("a", "b", "c"), ("x", "y")),
    "multilabel": Head("multilabel", ("x", "y", "z")),
    "regression": Head("regression"),
    "words": Head("words", TAGS),
    "features": Head("features"),
}
KINDS = pytest.mark.parametrize("kind", HEADS)
Sample = tuple[Answers, Answers, Answers]
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def sample(kind: str, rows: int = 150) -> Sample:
    """References, a model that errs often and one that errs less."""
    random = np.random.default_rng(3)
    if kind in ("regression", "features"):
        shape = (rows,) if kind == "regression" else (rows, 4)
        truth = random.normal(size=shape)
        a, b = (truth + wide * random.normal(size=shape) for wide in (0.8, 0.4))
        return truth, a, b
    if kind == "words":
        lengths = random.integers(1, 9, rows)
        truth, a, b = noisy(random, len(TAGS), (int(lengths.sum()),))
        ends = np.cumsum(lengths)[:-1]
        return np.split(truth, ends), np.split(a, ends), np.split(b, ends)
    shapes = {"classification": (rows,), "aspects": (rows, 2), "multilabel": (rows, 3)}
    return noisy(random, 2 if kind == "multilabel" else 3, shapes[kind])


def noisy(random: np.random.Generator, classes: int, shape: tuple[int, ...]) -> Arrays:
    truth = random.integers(0, classes, shape)
    other = (truth + 1) % classes
    a, b = (np.where(random.random(shape) < p, other, truth) for p in (0.3, 0.05))
    return truth, a, b


def main_statistic(kind: str, references: Answers, predictions: Answers) -> Statistic:
    return statistics(HEADS[kind], references, predictions)[MAIN[HEADS[kind].kind]]


def rows_of(answers: Answers, rows: np.ndarray) -> Answers:
    return answers[rows] if isinstance(answers, np.ndarray) else [answers[row] for row in rows]


@KINDS
def test_intervals_agree_with_drawing_rows(kind: str) -> None:
    """The oracle draws rows and scores each draw's own answers, 1,500 times."""
    references, a, b = sample(kind)
    random = np.random.default_rng(11)
    single, paired = [], []
    for _ in range(1500):
        rows = random.integers(0, len(references), len(references))
        drawn = [rows_of(side, rows) for side in (references, a, b)]
        of_a, of_b = (main_score(HEADS[kind], drawn[0], side) for side in drawn[1:])
        single.append(of_a)
        paired.append(of_b - of_a)
    statistic_a, statistic_b = (main_statistic(kind, references, side) for side in (a, b))
    found = [
        (bootstrap(statistic_a, draws=10_000), single),
        (paired_bootstrap(statistic_a, statistic_b, draws=10_000), paired),
    ]
    for interval, draws in found:
        # The end of an interval of 1,500 draws varies by 0.07 standard deviations.
        ends, wide = np.quantile(draws, [0.025, 0.975]), float(np.std(draws))
        assert (interval.low, interval.high) == pytest.approx(ends, abs=0.3 * wide)


@KINDS
def test_identity(kind: str) -> None:
    references, a, _ = sample(kind)
    perfect = bootstrap(main_statistic(kind, references, references), draws=50)
    assert perfect == Interval(1.0, 1.0, 1.0)
    same = main_statistic(kind, references, a)
    assert paired_bootstrap(same, same, draws=50) == Interval(0.0, 0.0, 0.0)


@KINDS
def test_more_rows_narrow_the_interval(kind: str) -> None:
    """16 times the rows: a quarter of the width."""
    widths = []
    for rows in (60, 960):
        references, a, _ = sample(kind, rows)
        interval = bootstrap(main_statistic(kind, references, a))
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert 2.5 < widths[0] / widths[1] < 6.5


@KINDS
def test_the_better_model_lies_above_zero_and_turns_with_the_order(kind: str) -> None:
    references, a, b = sample(kind)
    ours, theirs = (main_statistic(kind, references, side) for side in (a, b))
    forward, backward = paired_bootstrap(ours, theirs), paired_bootstrap(theirs, ours)
    assert 0 < forward.low < forward.value < forward.high
    assert forward.value == theirs.value - ours.value
    assert backward.value == -forward.value


def share_of_ones(right: np.ndarray) -> Statistic:
    counts = np.stack([right, np.ones_like(right)], axis=1).astype(np.float64)
    return Statistic(counts, lambda sums: np.asarray(sums[..., 0] / sums[..., 1], np.float64))


def test_the_normal_approximation() -> None:
    """360 of 400 right: 0.9 ± 1.96 * 0.015."""
    found = bootstrap(share_of_ones(np.arange(400) < 360), draws=20_000)
    assert (found.low, found.high) == pytest.approx((0.8706, 0.9294), abs=3e-3)


def test_pairing_cancels_what_both_find_hard() -> None:
    """One model repairs two errors of the other and shares the remaining 120."""
    a, b = (share_of_ones((np.arange(400) >= errors).astype(int)) for errors in (122, 120))
    interval = paired_bootstrap(a, b)
    assert interval.value == pytest.approx(2 / 400)
    assert interval.low >= 0.0
    assert interval.high <= 6 / 400


def test_seed_and_level() -> None:
    references, a, _ = sample("classification")
    statistic = main_statistic("classification", references, a)
    assert bootstrap(statistic) == bootstrap(statistic, seed=0)
    assert bootstrap(statistic) != bootstrap(statistic, seed=1)
    wide, narrow = (bootstrap(statistic, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = main_statistic("words", *sample("words")[:2])
    whole = bootstrap(statistic, draws=100)
    monkeypatch.setattr(resampling, "_BLOCK", 7 * 150)
    assert bootstrap(statistic, draws=100) == whole


def test_a_draw_of_equal_numbers_has_no_correlation() -> None:
    """Of two rows, half of the draws take one row twice."""
    statistic = main_statistic("regression", np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    assert bootstrap(statistic) == Interval(1.0, 0.0, 1.0)


def test_what_is_refused() -> None:
    a, b = share_of_ones(np.ones(3)), share_of_ones(np.ones(4))
    with pytest.raises(ValueError, match="same rows; found 3 and 4"):
        paired_bootstrap(a, b)
    for shape in ((0, 2), (3,)):
        with pytest.raises(ValueError, match="at least 1 row"):
            Statistic(np.ones(shape), lambda sums: np.asarray(sums[..., 0], np.float64))
