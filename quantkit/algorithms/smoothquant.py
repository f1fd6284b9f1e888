"""SmoothQuant: move the difficulty of wide input channels into the weights.

Xiao et al. 2023, equation 4. Input channel j is divided by

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)

On post-LayerNorm BERT alpha = 0.5, the usual default, is the worst choice measured; `auto`
takes alpha per tensor from `candidates`, by the error of the layer's output.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT

__all__ = ["SmoothQuant", "smoothing_vector"]

Alpha = Annotated[float, Field(gt=0.0, lt=1.0)]


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

    def vectors(self, inputs: Tensor, weights: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Each alpha with its s [in], from the channels' largest magnitudes [in]."""
        for alpha in self.alphas:
            yield alpha, smoothing_vector(inputs, weights, alpha)


def smoothing_vector(input_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """S [in] of equation 4, from the channels' absolute maxima [in]; 1 where either is 0.

    Input maximum 16 and weight maximum 1 give s = 4 at alpha 0.5 and 8 at alpha 0.75.
    """
    vector = input_absmax.pow(alpha) / weight_absmax.pow(1.0 - alpha)
    usable = torch.isfinite(vector) & (vector > 0.0)
    return torch.where(usable, vector, torch.ones_like(vector))
