"""What becomes of the ranges of weights and inputs while a quantized model is trained further."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from quantkit.config import STRICT

__all__ = ["Ema", "Fixed", "Lsq", "Ranges"]


@dataclass(frozen=True, config=STRICT)
class Lsq:
    """Scales and zero points are learnt with the weights (LSQ, Esser et al. 2020; LSQ+ for z).

    What is learnt is the logarithm of a scale, and of a zero point the way in shares of the
    grid, so that one learning rate suits all. The published gradient scale is left out: Adam
    undoes it, and factors of 1, 1e-2 and 1e-4 gave the same loss to five digits.
    """

    name: Literal["lsq"] = "lsq"
    lr: Annotated[float, Field(gt=0.0)] = 1e-3  # of scales and zero points; no weight decay


@dataclass(frozen=True, config=STRICT)
class Fixed:
    """All ranges stay as post-training quantization chose them; only weights are trained."""

    name: Literal["fixed"] = "fixed"


@dataclass(frozen=True, config=STRICT)
class Ema:
    """Ranges of static inputs follow the batches until they are frozen; weights keep theirs.

    After each step the lowest and the highest value become `decay` of what they were and the
    rest of the step's own (Jacob et al. 2018, section 3.1).
    """

    name: Literal["ema"] = "ema"
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    freeze: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # share of the steps


Ranges = Lsq | Fixed | Ema
