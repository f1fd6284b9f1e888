"""Inputs on their grids, with straight-through gradients to them and to the ranges."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit.kernels.fake_quant import learned_fake_quantize
from quantkit.numerics import Grid, centred_codes
from quantkit.qat.chunks import SCRATCH, chunks, in_chunks, passed_inside

__all__ = ["InputGrid", "Read", "fake_input", "input_values", "product_type"]


@dataclass(frozen=True)
class InputGrid:
    """Where the grid of an input lies.

    Args:
        scale: float32 scalar.
        zero_point: scalar, a real number that is rounded.
        grid: of the codes.
        multiplier: [in], of the input before it is put on the grid, without a gradient; None:
            all 1.
    """

    scale: Tensor
    zero_point: Tensor
    grid: Grid
    multiplier: Tensor | None

    def ends(self) -> tuple[float, float]:
        """The least and the greatest code, less the rounded zero point."""
        zero = float(torch.round(self.zero_point.detach()).clamp(self.grid.qmin, self.grid.qmax))
        return self.grid.qmin - zero, self.grid.qmax - zero


@dataclass(frozen=True)
class Read:
    """What a Linear multiplies with.

    Args:
        values: [..., in].
        source: `values` are `fake_input(source, grid)`; None: they are what they are.
        grid: given with `source`.
    """

    values: Tensor
    source: Tensor | None = None
    grid: InputGrid | None = None


def fake_input(x: Tensor, at: InputGrid) -> Tensor:
    """`x` [..., in] of any float type times the multiplier on its grid, computed in float32.

    On a CPU it is float32, elsewhere what a product of it is computed in.
    """
    if not in_chunks(x):
        return learned_fake_quantize(
            x, at.scale, at.zero_point, at.grid, smoothing=at.multiplier, kind=product_type(x)
        )
    result: Tensor = _FakeInput.apply(  # type: ignore[no-untyped-call]
        x, at.scale, at.zero_point, at.multiplier, at.ends()
    )
    return result


class _FakeInput(torch.autograd.Function):
    """`learned_fake_quantize(x * multiplier, ...)`, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        multiplier: Tensor | None,
        ends: tuple[float, float],
    ) -> Tensor:
        ctx.save_for_backward(x, scale, multiplier)
        ctx.ends = ends
        return input_values(x, scale, multiplier, ends, torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, scale, multiplier = ctx.saved_tensors
        learns_scale, learns_zero = ctx.needs_input_grad[1:3]
        low, high = ctx.ends
        passed = torch.empty_like(x, memory_format=torch.contiguous_format)
        # Over all places: the sums of g q, of g u inside, of g, and of g inside.
        sums = [torch.zeros((), dtype=scale.dtype) for _ in range(4)]
        for rows, incoming, into in chunks(x, gradients[0], passed):
            inside = into if into.dtype == incoming.dtype else SCRATCH.like(incoming, "inside")
            ratio = _input_ratio(rows, multiplier, scale, SCRATCH.like(incoming, "ratio"))
            passed_inside(incoming, ratio, low - 0.5, high + 0.5, out=inside)
            if learns_scale:
                sums[1] += torch.dot(inside.flatten(), ratio.flatten())
                codes = centred_codes(ratio, low, high, out=ratio)
                sums[0] += torch.dot(incoming.flatten(), codes.flatten())
            if learns_zero:
                sums[2] += incoming.sum()
                sums[3] += inside.sum()
            if multiplier is not None:
                inside.mul_(multiplier)
            if inside is not into:
                into.copy_(inside)
        to_scale = sums[0] - sums[1] if learns_scale else None
        to_zero = (sums[3] - sums[2]) * scale if learns_zero else None
        return passed, to_scale, to_zero, None, None


def product_type(x: Tensor) -> torch.dtype:
    """What a product of `x` is computed in: autocast's type, or float32."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return torch.float32


def input_values(
    x: Tensor,
    scale: Tensor,
    multiplier: Tensor | None,
    ends: tuple[float, float],
    kind: torch.dtype,
) -> Tensor:
    """The values x̂ = s q of `x` [..., in], computed in float32 and given as `kind`."""
    result = torch.empty(x.shape, dtype=kind)
    for rows, into in chunks(x, result):
        buffer = into if kind == torch.float32 else SCRATCH.like(into, "buffer", torch.float32)
        _input_ratio(rows, multiplier, scale, out=buffer)
        centred_codes(buffer, *ends, out=buffer).mul_(scale)
        if buffer is not into:
            into.copy_(buffer)
    return result


def _input_ratio(rows: Tensor, multiplier: Tensor | None, scale: Tensor, out: Tensor) -> Tensor:
    """The ratio u = x m / s of rows [n, in], in the memory of `out`."""
    if rows.dtype != out.dtype:
        rows = out.copy_(rows)
    if multiplier is None:
        return torch.div(rows, scale, out=out)
    return torch.mul(rows, multiplier, out=out).div_(scale)
