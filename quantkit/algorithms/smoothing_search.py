"""The search for a smoothing vector: of several, the one with the least error of the output.

Each input channel j is divided by s_j and the weight's column multiplied by it: the product
stays the same while the input's range narrows and the weight's grows. What that costs is
measured on sampled rows, with inputs on their grid and weights as the caller's rounding will
roughly leave them.

A weight that is applied several times (ALBERT) has one s for all its calls, while each call's
input keeps a range of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT
from quantkit.numerics import Grid, fake_quantize, scale_and_zero_point

__all__ = ["NoSmoothing", "Observed", "Smoothed", "channel_maxima", "search"]


@dataclass(frozen=True, config=STRICT)
class NoSmoothing:
    """Inputs are quantized as they are."""

    name: Literal["none"] = "none"


class Observed(NamedTuple):
    """What calibration saw of one tensor."""

    rows: Tensor  # a sample of its rows [n, in]
    low: Tensor  # smallest value of each channel over all rows [in]
    high: Tensor  # largest value of each channel, likewise [in]


class Smoothed(NamedTuple):
    """What `search` chose for one weight."""

    setting: float  # alpha, or the share of the range
    vector: Tensor  # s [in], float32
    error: float  # mean relative squared error of the output rows, over all calls


def channel_maxima(calls: Sequence[Observed]) -> Tensor:
    """The largest magnitude [in] that any call saw in each channel."""
    return torch.stack([torch.maximum(call.low.abs(), call.high.abs()) for call in calls]).amax(0)


def search(
    calls: Sequence[Observed],
    weight: Tensor,
    candidates: Iterable[tuple[float, Tensor]],
    input_grid: Grid,
    coarsened: Callable[[Tensor], Tensor],
    rotated: Callable[[Tensor], Tensor] | None = None,
) -> Smoothed:
    """The vector whose quantized product `rows @ weight.T` is nearest to the exact one.

    Args:
        calls: the tensors that the weight is applied to; most weights have one.
        weight: all weights that read these tensors, stacked [out, in].
        candidates: settings and their vectors [in].
        input_grid: per-tensor grid of each input, whose range is that of all its channels.
        coarsened: a smoothed weight as its own rounding will about leave it.
        rotated: what turns the smoothed inputs and, likewise, the rows of the smoothed weight;
            the range of an input is then that of its turned sample.

    Raises:
        ValueError: no candidates.
    """
    exact = [call.rows @ weight.T for call in calls]
    best: Smoothed | None = None
    for setting, vector in candidates:
        smoothed = weight * vector
        coarse = coarsened(smoothed if rotated is None else rotated(smoothed))
        errors = [
            _error(_read(call, vector, rotated), product, coarse, input_grid)
            for call, product in zip(calls, exact, strict=True)
        ]
        error = sum(errors) / len(errors)
        if best is None or error < best.error:
            best = Smoothed(setting, vector, error)
    if best is None:
        raise ValueError("no smoothing vector to try")
    return best


def _read(call: Observed, vector: Tensor, rotated: Callable[[Tensor], Tensor] | None) -> Observed:
    """What was seen of a tensor as it is after smoothing, and rotation if there is one."""
    if rotated is None:
        return Observed(*(part / vector for part in call))
    rows = rotated(call.rows / vector)
    # A rotated channel's extremes do not follow from the channels' own.
    return Observed(rows, rows.amin(0), rows.amax(0))


def _error(read: Observed, exact: Tensor, coarse: Tensor, grid: Grid) -> float:
    """Mean relative squared error of one call's product with the `coarse` weight [out, in]."""
    extremes = read.low.amin(), read.high.amax()
    rows = fake_quantize(read.rows, *scale_and_zero_point(*extremes, grid), grid)
    residual = (rows @ coarse.T - exact).square().sum(1)
    # Relative to each row: a massive token would otherwise outvote all others, though the
    # LayerNorm that follows brings every token to one scale.
    energy = exact.square().sum(1).clamp(min=torch.finfo(exact.dtype).tiny)
    return float((residual / energy).mean())
