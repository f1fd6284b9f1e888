"""SmoothQuant: move the difficulty of wide input channels into the weights.

Xiao et al. 2023, equation 4. Each input channel j is divided by s_j and the weight's column
multiplied by it, so the product stays the same while the input's range narrows:

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)

On post-LayerNorm BERT alpha = 0.5, the usual default, is the worst choice measured; the
search below takes alpha per tensor from `candidates`, by the error of the layer's output.

A weight that is applied several times (ALBERT) has one s for all its calls, while each
call's input keeps a range of its own.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT
from quantkit.numerics import Grid, fake_quantize, scale_and_zero_point

__all__ = ["NoSmoothing", "Observed", "SmoothQuant", "Smoothed", "search", "smoothing_vector"]

Alpha = Annotated[float, Field(gt=0.0, lt=1.0)]


@dataclass(frozen=True, config=STRICT)
class NoSmoothing:
    """Inputs are quantized as they are."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, config=STRICT)
class SmoothQuant:
    """One alpha for all inputs, or `auto`: the best of `candidates` for each."""

    alpha: Literal["auto"] | Alpha = "auto"
    candidates: tuple[Alpha, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
    name: Literal["smoothquant"] = "smoothquant"

    @property
    def alphas(self) -> tuple[float, ...]:
        """The values that the search tries."""
        return self.candidates if self.alpha == "auto" else (self.alpha,)


class Observed(NamedTuple):
    """What calibration saw of one tensor."""

    rows: Tensor  # a sample of its rows [n, in]
    low: Tensor  # smallest value of each channel over all rows [in]
    high: Tensor  # largest value of each channel, likewise [in]


class Smoothed(NamedTuple):
    """What `search` chose for one weight."""

    alpha: float
    vector: Tensor  # s [in], float32
    error: float  # mean relative squared error of the output rows, over all calls


def smoothing_vector(input_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """S [in] of equation 4, from the channels' absolute maxima [in]; 1 where either is 0.

    Input maximum 16 and weight maximum 1 give s = 4 at alpha 0.5 and 8 at alpha 0.75.
    """
    vector = input_absmax.pow(alpha) / weight_absmax.pow(1.0 - alpha)
    usable = torch.isfinite(vector) & (vector > 0.0)
    return torch.where(usable, vector, torch.ones_like(vector))


def search(
    calls: Sequence[Observed],
    weight: Tensor,
    alphas: tuple[float, ...],
    input_grid: Grid,
    weight_grid: Grid,
) -> Smoothed:
    """The alpha whose quantized product `rows @ weight.T` is nearest to the exact one.

    Args:
        calls: the tensors that the weight is applied to; most weights have one.
        weight: all weights that read these tensors, stacked [out, in].
        alphas: the values to try.
        input_grid: per-tensor grid of each input, whose range is that of all its channels.
        weight_grid: per-channel grid of the weight.
    """
    exact = [call.rows @ weight.T for call in calls]
    extremes = [torch.maximum(call.low.abs(), call.high.abs()) for call in calls]
    input_absmax, weight_absmax = torch.stack(extremes).amax(0), weight.abs().amax(0)
    best: Smoothed | None = None
    for alpha in alphas:
        vector = smoothing_vector(input_absmax, weight_absmax, alpha)
        scaled = weight * vector
        bound = scaled.abs().amax(1, keepdim=True)
        coarse = fake_quantize(
            scaled, *scale_and_zero_point(-bound, bound, weight_grid), weight_grid
        )
        errors = [
            _error(call, product, vector, coarse, input_grid)
            for call, product in zip(calls, exact, strict=True)
        ]
        error = sum(errors) / len(errors)
        if best is None or error < best.error:
            best = Smoothed(alpha, vector, error)
    if best is None:
        raise ValueError("no alpha to try")
    return best


def _error(call: Observed, exact: Tensor, vector: Tensor, coarse: Tensor, grid: Grid) -> float:
    """Mean relative squared error of one call's product with the `coarse` weight [out, in]."""
    extremes = (call.low / vector).amin(), (call.high / vector).amax()
    rows = fake_quantize(call.rows / vector, *scale_and_zero_point(*extremes, grid), grid)
    residual = (rows @ coarse.T - exact).square().sum(1)
    # Relative to each row: a massive token would otherwise outvote all others, though the
    # LayerNorm that follows brings every token to one scale.
    energy = exact.square().sum(1).clamp(min=torch.finfo(exact.dtype).tiny)
    return float((residual / energy).mean())
