"""Scores of numbers and of vectors: regression and features."""

import numpy as np

from quantkit.heads import Head
from quantkit.metrics.answers import Answers, Values, values
from quantkit.metrics.resampling import Counts, Statistic

__all__ = ["correlation_statistic", "cosines", "scores", "statistics"]

# A draw whose variance is this small beside its mean square is constant but for rounding.
_CONSTANT = 1e-12


def statistics(head: Head, references: Answers, predictions: Answers) -> dict[str, Statistic]:
    """`pearson` and `rmse` of a regression, `cosine` of features."""
    x, y = values(head, references, predictions)
    if head.kind == "features":
        return {"cosine": Statistic(_beside_ones(cosines(x, y)), _mean)}
    errors = Statistic(_beside_ones((x - y) ** 2), _root_mean)
    return {"pearson": correlation_statistic(x, y), "rmse": errors}


def scores(head: Head, references: Answers, predictions: Answers) -> dict[str, float]:
    """The same, and `spearman` and `mae` of a regression."""
    found = {k: v.value for k, v in statistics(head, references, predictions).items()}
    if head.kind == "features":
        return found
    x, y = values(head, references, predictions)
    return {
        "pearson": found["pearson"],
        "spearman": correlation_statistic(_ranks(x), _ranks(y)).value,
        "rmse": found["rmse"],
        "mae": float(np.abs(x - y).mean()),
    }


def correlation_statistic(x: Values, y: Values) -> Statistic:
    """Pearson's correlation of `x` [rows] and `y` [rows]; 0 where one of them is constant.

    The counts are the six sums it is made of. (0, 1, 2) and (0, 2, 1) correlate by 0.5.
    """
    x, y = _standardized(x), _standardized(y)
    sums = [np.ones_like(x), x, y, x * x, y * y, x * y]
    return Statistic(np.stack(sums, axis=1), _correlation)


def cosines(x: Values, y: Values) -> Values:
    """Cosine [rows] of each row of `x` [rows, dim] with that of `y`; 0 for a zero vector."""
    xy, xx, yy = (np.einsum("ij,ij->i", a, b) for a, b in ((x, y), (x, x), (y, y)))
    lengths = np.sqrt(xx * yy)  # of one rounding for y = x, whose cosine is 1.0 exactly
    return np.asarray(np.clip(xy / np.where(lengths > 0, lengths, 1.0), -1.0, 1.0))


def _standardized(x: Values) -> Values:
    """Mean 0 and variance 1, which keeps the sums of squares exact enough to subtract."""
    if np.ptp(x) == 0:
        return np.zeros_like(x)
    centred = x - x.mean()
    return np.asarray(centred / np.sqrt((centred**2).mean()))


def _ranks(x: Values) -> Values:
    """Rank of each number, equal numbers sharing their mean rank: 5, 7, 7 have 1, 2.5, 2.5."""
    _, places, sizes = np.unique(x, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[places], dtype=np.float64)


def _correlation(counts: Counts) -> Values:
    n, x, y, xx, yy, xy = np.moveaxis(counts, -1, 0)
    along_x, along_y = xx - x * x / n, yy - y * y / n
    constant = (along_x <= _CONSTANT * xx) | (along_y <= _CONSTANT * yy)
    spread = np.sqrt(np.where(constant, 1.0, along_x * along_y))
    return np.asarray(np.where(constant, 0.0, np.clip((xy - x * y / n) / spread, -1.0, 1.0)))


def _beside_ones(x: Values) -> Values:
    return np.stack([x, np.ones_like(x)], axis=1)


def _mean(counts: Counts) -> Values:
    return np.asarray(counts[..., 0] / counts[..., 1], dtype=np.float64)


def _root_mean(counts: Counts) -> Values:
    return np.asarray(np.sqrt(_mean(counts)))
