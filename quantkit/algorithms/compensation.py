"""Compensation: a weight that makes up for the errors its inputs arrive with.

Rounding brings Ŵx near Wx, but behind quantized layers a Linear reads x̂ instead of x. The
target that brings W'x̂ nearest to Wx is the solution of a ridge regression (the asymmetric
calibration of GPTAQ, Li et al. 2025, arXiv 2504.02692, minimises the same error):

    min E‖Wx - W'x̂‖² + λ‖W' - W‖²   =>   W' = W (C + λI) (Ĥ + λI)⁻¹

with C = E[x x̂ᵀ] and Ĥ = E[x̂ x̂ᵀ] over calibration tokens. λ is a share of Ĥ's mean diagonal:
without it the few directions that calibration hardly saw would be fitted to noise.
"""

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT

__all__ = ["Compensation", "compensated"]


@dataclass(frozen=True, config=STRICT)
class Compensation:
    """Linears are quantized one after the other, each making up for those before it.

    It takes a pass of the float and one of the quantized model, up to there, for each tensor
    that Linears read: on average four forward passes of the calibration texts per layer.
    """

    damping: Annotated[float, Field(gt=0.0)] = 0.1  # λ, as a share of the mean diagonal


def compensated(weight: Tensor, cross: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """W' [out, in], float32, the target that the codes are to come near to.

    With x̂ = x it is `weight` itself. With one channel, x̂ = x / 2 and λ = 0 it is twice the
    weight: C = E[x²] / 2, Ĥ = E[x²] / 4.

    Args:
        weight: W [out, in].
        cross: C [in, in], rows belong to x, columns to x̂.
        hessian: Ĥ [in, in].
        damping: λ over the mean of Ĥ's diagonal.
    """
    # From the difference, so that equal inputs leave the weight bit for bit.
    ridge = hessian.double() + damping * hessian.diagonal().double().mean() * torch.eye(
        len(hessian), dtype=torch.float64
    )
    change = weight.double() @ (cross - hessian).double()
    solved: Tensor = torch.linalg.solve(ridge, change, left=False)
    result: Tensor = (weight.double() + solved).float()
    return result
