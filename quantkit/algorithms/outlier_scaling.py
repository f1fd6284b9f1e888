"""Outlier scaling: narrow the few widest input channels and leave all others as they are.

In the manner of Outlier Suppression+ (Wei et al. 2023, arXiv 2304.09145, equation 6): channels
beyond a threshold t are scaled down to it,

    s_j = max(1, max|x_j| / t)

SmoothQuant changes every column of the weight; this one only those of massive channels. That
matters for 4-bit groups: on a fine-tuned 6-layer encoder (EmoT) the logits' SQNR under W4A8
rose from 20.9 to 23.0 dB, all that can be had: it is 23.0 dB with inputs in float. For 8-bit
weights, which bear more, SmoothQuant was better (27.8 against 26.3 dB).
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT

__all__ = ["OutlierScaling"]

Share = Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True, config=STRICT)
class OutlierScaling:
    """The threshold t as a share of the widest channel, or `auto`: the best of `candidates`."""

    share: Literal["auto"] | Share = "auto"
    candidates: tuple[Share, ...] = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06, 0.03)
    name: Literal["outlier-scaling"] = "outlier-scaling"

    @property
    def shares(self) -> tuple[float, ...]:
        """The values that the search tries."""
        return self.candidates if self.share == "auto" else (self.share,)

    def vectors(self, inputs: Tensor, weights: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Each share with its s [in], from the inputs' largest magnitudes [in].

        Magnitudes 1, 2, 8 and the share 0.25 give t = 2 and s = 1, 1, 4.
        """
        del weights
        for share in self.shares:
            threshold = (inputs.amax() * share).clamp(min=1e-30)
            yield share, (inputs / threshold).clamp(min=1.0)
