"""Fake quantization with learnt ranges, as one kernel forward and one backward.

`numerics.learned_fake_quantize` is the definition: what it computes in some fifteen steps over a
tensor, these kernels do in one pass each, and between the two they keep x alone, not the codes.
"""

from typing import Any

import torch
from torch import Tensor

from quantkit import numerics
from quantkit.kernels.arithmetic import round_half_even
from quantkit.kernels.launch import jit, power_of_two, tl, uses_triton
from quantkit.numerics import Grid

__all__ = ["MOST_COLUMNS", "learned_fake_quantize", "units"]

MOST_COLUMNS = 16384  # of a row, which one program holds in registers


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    grid: Grid,
    multipliers: Tensor | None = None,
    *,
    smoothing: Tensor | None = None,
    kind: torch.dtype = torch.float32,
) -> Tensor:
    """`numerics.learned_fake_quantize` of `x` times `smoothing`, by kernels where `x` is on a GPU.

    The value is the same bit for bit; the sums behind the gradients of scale and zero point are
    taken in another order. Kernels take one zero point, and a scale for the whole tensor or for
    each row; anything else goes the plain way.

    Args:
        x: of any float dtype, as is its gradient; computed in float32.
        scale: these four as in `numerics.learned_fake_quantize`.
        zero_point: a real number that is rounded.
        grid: of the codes.
        multipliers: of groups of a weight.
        smoothing: float32 [columns of `x`], without a gradient; None: all 1.
        kind: of the result: what the product behind it is computed in.
    """
    rows = x.numel() // max(1, _columns(x, multipliers))
    fits = (
        uses_triton(x)
        and not torch.compiler.is_compiling()
        and x.is_floating_point()
        and scale.dtype == torch.float32
        and zero_point.numel() == 1
        and scale.numel() in (1, rows)
        and 0 < _columns(x, multipliers) <= MOST_COLUMNS
        and (multipliers is None or multipliers.numel() == x.numel() // x.shape[-1])
    )
    if not fits:
        smoothed = x.float() if smoothing is None else x.float() * smoothing
        result = numerics.learned_fake_quantize(smoothed, scale, zero_point, grid, multipliers)
        return result.to(kind)
    fused: Tensor = _Fused.apply(x, scale, zero_point, multipliers, grid, smoothing, kind)
    return fused


def _columns(x: Tensor, multipliers: Tensor | None) -> int:
    """Elements of a row: the last dimension, or the two of groups and what is in them."""
    return x.shape[-1] if multipliers is None else x.shape[-2] * x.shape[-1]


class _Fused(torch.autograd.Function):
    """Rows of `x`, each a program; see `_forward` and `_backward`."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        multipliers: Tensor | None,
        grid: Grid,
        smoothing: Tensor | None,
        kind: torch.dtype,
    ) -> Tensor:
        x = x.contiguous()
        ctx.grid = grid
        ctx.save_for_backward(x, scale, zero_point, multipliers, smoothing)
        result = torch.empty_like(x, dtype=kind)
        rows, arguments, settings = _launch(x, scale, zero_point, multipliers, smoothing, grid)
        _forward[(rows,)](*arguments, result, **settings)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, scale, zero_point, multipliers, smoothing = ctx.saved_tensors
        rows, arguments, settings = _launch(x, scale, zero_point, multipliers, smoothing, ctx.grid)
        to_x = torch.empty_like(x)
        to_scale, to_zero = scale.new_empty((rows,)), scale.new_empty((rows,))
        given = gradients[0].contiguous()
        _backward[(rows,)](*arguments, given, to_x, to_scale, to_zero, **settings)
        scales = to_scale if scale.numel() > 1 else to_scale.sum()
        return (
            to_x,
            scales.view(scale.shape) if ctx.needs_input_grad[1] else None,
            to_zero.sum().view(zero_point.shape) if ctx.needs_input_grad[2] else None,
            *[None] * 4,
        )


def _launch(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    multipliers: Tensor | None,
    smoothing: Tensor | None,
    grid: Grid,
) -> tuple[int, tuple[object, ...], dict[str, Any]]:
    """Number of rows, and what both kernels take."""
    columns = _columns(x, multipliers)
    factors = scale if multipliers is None else multipliers.contiguous()
    vector = scale if smoothing is None else smoothing.contiguous()
    arguments = (x, scale.contiguous(), zero_point, factors, vector, columns, x.shape[-1])
    settings = {
        "PER_ROW": scale.numel() > 1,
        "GROUPED": multipliers is not None,
        "SMOOTHED": smoothing is not None,
        "LOW": float(grid.qmin),
        "HIGH": float(grid.qmax),
        "BLOCK": power_of_two(columns),
    }
    return x.numel() // columns, arguments, settings


@jit
def units(
    x,
    step,
    zero,
    multipliers,
    smoothing,
    columns,
    group,
    GROUPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of one row: x smoothed, its integers m (q - z), and where q was not clipped.

    x, multipliers: where the row's begin; step, zero: its scale and zero point.
    """
    column = tl.arange(0, BLOCK)
    there = column < columns
    value = tl.load(x + column, mask=there, other=0.0).to(tl.float32)
    if SMOOTHED:
        value = value * tl.load(smoothing + column, mask=there, other=0.0)
    zero = tl.minimum(tl.maximum(round_half_even(zero), LOW), HIGH)
    factor = tl.full((BLOCK,), 1.0, tl.float32)
    if GROUPED:
        factor = tl.load(multipliers + column // group, mask=there, other=1.0).to(tl.float32)
    ratio = tl.div_rn(value, step * factor)
    ratio = tl.minimum(tl.maximum(ratio, -1024.0), 1024.0)
    inside = (ratio > LOW - zero - 0.5) & (ratio < HIGH - zero + 0.5)
    shifted = round_half_even(ratio) + zero
    return value, (tl.minimum(tl.maximum(shifted, LOW), HIGH) - zero) * factor, inside


@jit
def _forward(
    x,
    scale,
    zero_point,
    multipliers,
    smoothing,
    columns,
    group,
    result,
    PER_ROW: tl.constexpr,
    GROUPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The value m (q - z) s."""
    row = tl.program_id(0).to(tl.int64)
    step, zero = tl.load(scale + (row if PER_ROW else 0)), tl.load(zero_point)
    x, multipliers = x + row * columns, multipliers + row * (columns // group)
    _, made, _ = units(
        *(x, step, zero, multipliers, smoothing, columns, group),
        *(GROUPED, SMOOTHED, LOW, HIGH, BLOCK),
    )
    column = tl.arange(0, BLOCK)
    place = result + row * columns + column
    tl.store(place, (made * step).to(result.dtype.element_ty), mask=column < columns)


@jit
def _backward(
    x,
    scale,
    zero_point,
    multipliers,
    smoothing,
    columns,
    group,
    gradient,
    to_x,
    to_scale,
    to_zero,
    PER_ROW: tl.constexpr,
    GROUPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The straight-through gradients; those of scale and zero point summed over the row."""
    row = tl.program_id(0).to(tl.int64)
    step, zero = tl.load(scale + (row if PER_ROW else 0)), tl.load(zero_point)
    x, multipliers = x + row * columns, multipliers + row * (columns // group)
    value, made, inside = units(
        *(x, step, zero, multipliers, smoothing, columns, group),
        *(GROUPED, SMOOTHED, LOW, HIGH, BLOCK),
    )
    column = tl.arange(0, BLOCK)
    there = column < columns
    given = tl.load(gradient + row * columns + column, mask=there, other=0.0).to(tl.float32)
    passed = tl.where(inside, given, 0.0)
    back = passed
    if SMOOTHED:
        back = passed * tl.load(smoothing + column, mask=there, other=0.0)
    tl.store(to_x + row * columns + column, back.to(to_x.dtype.element_ty), mask=there)
    tl.store(to_scale + row, tl.sum(given * made - passed * tl.div_rn(value, step), axis=0))
    tl.store(to_zero + row, tl.sum((passed - given) * step, axis=0))
