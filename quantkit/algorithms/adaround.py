"""AdaRound: learn for every weight whether it is rounded up or down.

Nagel et al. 2020 (arXiv 2004.10568), equations 21 to 24. A weight between two codes of its
grid takes the lower one plus h in [0, 1], and h is learnt with Adam:

    Ŵ = s (⌊W / s⌋ + h(V)),   h(V) = clip(sigmoid(V) (ζ - γ) + γ, 0, 1),   ζ = 1.1, γ = -0.1

    tr((Ŵ - W) H (Ŵ - W)ᵀ) + λ Σ 1 - |2h - 1|^β

The first term is E‖Ŵx - Wx‖² with H = E[x xᵀ] of the inputs x, so no input is needed again.
The second one drives h to 0 or 1, first where it is near already: β falls from 20 to 2.

It starts where h is the fractional part of W / s and draws nothing at random.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from quantkit.config import STRICT
from quantkit.numerics import Grid, dequantize, quantize

__all__ = ["AdaRound"]

ZETA, GAMMA = 1.1, -0.1  # h is stretched, so that it reaches 0 and 1 with a finite V
Beta = Annotated[float, Field(ge=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True, config=STRICT)
class AdaRound:
    """Learnt rounding; a row whose nearest codes are better keeps those.

    Every step takes out * in * in multiplications, 0.13e12 for the 72 Linears of BERT-base:
    5 s on one core of 60 GFLOP/s, so 1000 steps take about an hour and a half there. (GPTQ takes
    a minute and a half, and came nearer on most of the matrices that both were tried on.)
    """

    steps: Annotated[int, Field(gt=0)] = 1000
    lr: PositiveFloat = 0.01
    beta: tuple[Beta, Beta] = (20.0, 2.0)  # falls linearly from the first to the second
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # share of the steps without λ
    # λ, in errors that a weight makes when rounded at random: the same for every layer.
    regularization: PositiveFloat = 100.0
    name: Literal["adaround"] = "adaround"
    needs_hessian: ClassVar[bool] = True

    def round(self, weight: Tensor, scale: Tensor, grid: Grid, hessian: Tensor | None) -> Tensor:
        """Codes [out, in] of `weight` [out, in], in the grid's dtype.

        Each code is the floor or the ceiling of W / s, clipped to the grid. No row's error
        D H Dᵀ is above that of its nearest codes. For W = [0.4, 0.3], H = [[1, 0.9], [0.9, 1]]
        and scale 1 nearest gives [0, 0] with an error of 0.466, and this [1, 0] with 0.126.

        Args:
            weight: float32.
            scale: float32 [out, 1], or [out, in] with a group's scale at each of its columns.
            grid: a symmetric grid; the zero point is 0.
            hessian: H [in, in], the mean of x xᵀ over tokens, float32 or float64.

        Raises:
            ValueError: there is no `hessian`, or its shape is not [in, in].
        """
        if hessian is None or hessian.shape != (weight.shape[1], weight.shape[1]):
            raise ValueError(f"AdaRound needs the Hessian of {weight.shape[1]} inputs.")
        nearest = quantize(weight, scale, scale.new_zeros((), dtype=grid.dtype), grid)
        lower, upper = _neighbours(nearest, weight, scale, grid)
        # A caller's inference mode would leave nothing to differentiate.
        with torch.inference_mode(False), torch.enable_grad():
            tensors = (weight.clone(), scale.clone(), lower.clone(), upper.clone())
            up = self._learnt(*tensors, hessian.to(weight.dtype, copy=True))
        codes = torch.where(up, upper, lower).to(grid.dtype)
        better = _errors(codes, weight, scale, hessian) < _errors(nearest, weight, scale, hessian)
        return torch.where(better[:, None], codes, nearest)

    def _learnt(
        self, weight: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, hessian: Tensor
    ) -> Tensor:
        """Whether each weight takes its upper code [out, in], bool."""
        start, width = lower * scale - weight, (upper - lower) * scale
        unit = _random_error(scale, hessian)
        hidden = _inverse_h(-start / scale).requires_grad_()
        optimizer = torch.optim.Adam([hidden], lr=self.lr)
        for step in range(self.steps):
            h = _h(hidden)
            error = start + h * width
            # Twice this product is the gradient by the error; differentiating the whole term
            # would take the large product twice.
            loss = (2.0 * (error.detach() @ hessian) / unit * error).sum()
            loss = loss + self._undecided(h, step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return _h(hidden.detach()) >= 0.5

    def _undecided(self, h: Tensor, step: int) -> Tensor:
        """λ Σ 1 - |2h - 1|^β (equation 24) with the β of this step; 0 during the warm-up."""
        done = (step / self.steps - self.warmup) / (1.0 - self.warmup)
        if done < 0.0:
            return h.new_zeros(())
        beta = self.beta[0] + (self.beta[1] - self.beta[0]) * done
        return self.regularization * (1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum()


def _neighbours(
    nearest: Tensor, weight: Tensor, scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """The codes below and above each weight, in float; one and the same on the grid or beyond."""
    zero = scale.new_zeros(())
    lower = nearest.to(scale.dtype) - (dequantize(nearest, scale, zero) > weight).to(scale.dtype)
    upper = lower + (dequantize(lower, scale, zero) < weight).to(scale.dtype)
    return lower.clamp(grid.qmin, grid.qmax), upper.clamp(grid.qmin, grid.qmax)


def _random_error(scale: Tensor, hessian: Tensor) -> Tensor:
    """Mean error of a weight [out, 1] whose rounding error is uniform: mean_j s² H_jj / 12."""
    error = (scale.square() * hessian.diagonal()).mean(1, keepdim=True) / 12.0
    return error.clamp(min=torch.finfo(error.dtype).tiny)


def _h(hidden: Tensor) -> Tensor:
    """The rectified sigmoid (equation 23)."""
    return (torch.sigmoid(hidden) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def _inverse_h(share: Tensor) -> Tensor:
    """The V whose h is `share` (brought into [0, 1]); 0.5 gives 0."""
    return torch.logit((share.clamp(0.0, 1.0) - GAMMA) / (ZETA - GAMMA))


def _errors(codes: Tensor, weight: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """The error D H Dᵀ of each row [out], in float64."""
    error = dequantize(codes, scale, scale.new_zeros(())).double() - weight
    return ((error @ hessian.double()) * error).sum(1)
