"""Fake quantization of many matrices at once: one kernel forward and one backward for all.

A model has some hundred weights, and what starts a kernel takes longer than one of them does. The
matrices stay where they are: the kernels look up where each row lies.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quantkit import numerics
from quantkit.integers import in_groups
from quantkit.kernels.fake_quant import MOST_COLUMNS, units
from quantkit.kernels.launch import jit, power_of_two, tl, uses_triton
from quantkit.numerics import Grid

__all__ = ["fake_quantize_weights", "fake_quantize_weights_reference"]


def fake_quantize_weights(
    weights: Sequence[Tensor],
    scales: Tensor,
    multipliers: Tensor | None,
    grid: Grid,
    kind: torch.dtype,
) -> tuple[Tensor, ...]:
    """`numerics.learned_fake_quantize` of each of `weights`, as `kind`.

    Args:
        weights: float32 [rows, columns], of as many columns each.
        scales: float32 [all rows], one weight's behind the other's.
        multipliers: int8 [all rows, groups], without a gradient; None: all 1.
        grid: symmetric.
        kind: of the results.
    """
    columns = weights[0].shape[1]
    if not uses_triton(weights[0]) or columns > MOST_COLUMNS:
        return fake_quantize_weights_reference(weights, scales, multipliers, grid, kind)
    made: tuple[Tensor, ...] = _Many.apply(scales, multipliers, grid, kind, *weights)
    return made


def fake_quantize_weights_reference(
    weights: Sequence[Tensor],
    scales: Tensor,
    multipliers: Tensor | None,
    grid: Grid,
    kind: torch.dtype,
) -> tuple[Tensor, ...]:
    """`fake_quantize_weights` in plain torch, one after the other."""
    rows = [len(weight) for weight in weights]
    zero, found = scales.new_zeros(()), []
    factors: Sequence[Tensor | None] = [None] * len(weights)
    if multipliers is not None:
        factors = multipliers.to(scales.dtype).split(rows)
    for weight, scale, factor in zip(weights, scales.split(rows), factors, strict=True):
        if factor is None:
            made = numerics.learned_fake_quantize(weight, scale[:, None], zero, grid)
        else:
            grouped, step = in_groups(weight, factor.shape[1]), scale[:, None, None]
            made = numerics.learned_fake_quantize(grouped, step, zero, grid, factor[..., None])
        found.append(made.reshape(weight.shape).to(kind))
    return tuple(found)


class _Many(torch.autograd.Function):
    """Rows of all weights, each a program."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        scales: Tensor,
        multipliers: Tensor | None,
        grid: Grid,
        kind: torch.dtype,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = tuple(len(weight) for weight in weights)
        places = _places(rows, scales.device)
        given = tuple(weight.contiguous() for weight in weights)
        ctx.grid, ctx.rows, ctx.places = grid, rows, places
        ctx.save_for_backward(scales, multipliers, *given)
        result = scales.new_empty((len(scales), weights[0].shape[1]), dtype=kind)
        arguments, settings = _launch(given, scales, multipliers, grid)
        _forward[(len(scales),)](*places, *arguments, result, **settings)
        return tuple(torch.split(result, list(rows)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        scales, multipliers, *weights = ctx.saved_tensors
        given = tuple(gradient.contiguous() for gradient in gradients)
        to_weights = scales.new_empty((len(scales), weights[0].shape[1]))
        to_scales = torch.empty_like(scales)
        arguments, settings = _launch(weights, scales, multipliers, ctx.grid)
        incoming = _addresses(given, scales.device)
        settings["KIND"] = getattr(tl, str(given[0].dtype).removeprefix("torch."))
        _backward[(len(scales),)](
            *ctx.places, *arguments, incoming, to_weights, to_scales, **settings
        )
        return to_scales, None, None, None, *to_weights.split(list(ctx.rows))


@lru_cache(maxsize=16)
def _places(rows: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each row the matrix that it is of, int32 [all rows], and of each its first row, int64."""
    counts = torch.tensor(rows)
    owner = torch.repeat_interleave(torch.arange(len(rows), dtype=torch.int32), counts)
    return owner.to(device), (counts.cumsum(0) - counts).to(device)


def _addresses(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Int64 [tensors]: where each begins."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors]).to(device)


def _launch(
    weights: Sequence[Tensor], scales: Tensor, multipliers: Tensor | None, grid: Grid
) -> tuple[tuple[object, ...], dict[str, Any]]:
    """What both kernels take."""
    columns = weights[0].shape[1]
    groups = 1 if multipliers is None else multipliers.shape[1]
    factors = scales if multipliers is None else multipliers.contiguous()
    addresses = _addresses(weights, scales.device)
    settings = {
        "GROUPED": multipliers is not None,
        "LOW": float(grid.qmin),
        "HIGH": float(grid.qmax),
        "BLOCK": power_of_two(columns),
    }
    return (addresses, scales, factors, columns, columns // groups), settings


@jit
def _of_row(
    owner,
    first,
    addresses,
    scales,
    multipliers,
    columns,
    group,
    GROUPED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of the program's row: its matrix, its number there, what `units` gives, and its scale."""
    row = tl.program_id(0).to(tl.int64)
    matrix = tl.load(owner + row)
    inside_matrix = row - tl.load(first + matrix)
    weight = tl.load(addresses + matrix).to(tl.pointer_type(tl.float32))
    step = tl.load(scales + row)
    value, made, inside = units(
        *(weight + inside_matrix * columns, step, 0.0, multipliers + row * (columns // group)),
        *(scales, columns, group, GROUPED, False, LOW, HIGH, BLOCK),
    )
    return matrix, inside_matrix, value, made, inside, step


@jit
def _forward(
    owner,
    first,
    addresses,
    scales,
    multipliers,
    columns,
    group,
    result,
    GROUPED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The value m q s."""
    _, _, _, made, _, step = _of_row(
        *(owner, first, addresses, scales, multipliers, columns, group),
        *(GROUPED, LOW, HIGH, BLOCK),
    )
    column = tl.arange(0, BLOCK)
    place = result + tl.program_id(0).to(tl.int64) * columns + column
    tl.store(place, (made * step).to(result.dtype.element_ty), mask=column < columns)


@jit
def _backward(
    owner,
    first,
    addresses,
    scales,
    multipliers,
    columns,
    group,
    incoming,
    to_weights,
    to_scales,
    GROUPED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
):
    """The straight-through gradients; that of a scale summed over the row."""
    matrix, inside_matrix, value, made, inside, step = _of_row(
        *(owner, first, addresses, scales, multipliers, columns, group),
        *(GROUPED, LOW, HIGH, BLOCK),
    )
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = column < columns
    gradient = tl.load(incoming + matrix).to(tl.pointer_type(KIND)) + inside_matrix * columns
    given = tl.load(gradient + column, mask=there, other=0.0).to(tl.float32)
    passed = tl.where(inside, given, 0.0)
    tl.store(to_weights + row * columns + column, passed, mask=there)
    tl.store(to_scales + row, tl.sum(given * made - passed * tl.div_rn(value, step), axis=0))
