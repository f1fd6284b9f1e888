"""Products on grids with straight-through gradients, at little more than the cost of the product.

`numerics.learned_fake_quantize` says what is computed. On a CPU the same is done here a few rows
at a time, which stay in the cache through all the steps, in place, and computed again for the
backward pass instead of kept: no mask, no copy of a weight and none of an input outlives a
product, so that a step keeps what the float step keeps. On a GPU the kernels of
`kernels.fake_quant` run, and under torch.compile, which makes its own, the definition.
"""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from quantkit.integers import in_groups
from quantkit.kernels.fake_quant import learned_fake_quantize
from quantkit.numerics import Grid, centred_codes
from quantkit.qat.chunks import SCRATCH, in_chunks, passed_inside, rows_at_a_time
from quantkit.qat.inputs import Read, input_values, product_type

__all__ = ["fake_linear", "fake_weight"]


def fake_linear(
    read: Read,
    weight: Tensor,
    scale: Tensor,
    multipliers: Tensor | None,
    grid: Grid,
    bias: Tensor | None,
) -> Tensor:
    """What is read, [..., in], times `weight` [out, in] on its grid, transposed, plus `bias`.

    The product is computed in autocast's type, if that is on, and the grid in float32.

    Args:
        read: on a grid of its own, or not.
        weight: latent, float32.
        scale: float32 [out, 1].
        multipliers: int8 [out, groups], without a gradient; None: all 1.
        grid: symmetric.
        bias: [out]; None without.
    """
    x = read.values
    if not in_chunks(x):
        return linear(x, fake_weight(weight, scale, multipliers, grid, product_type(x)), bias)
    result: Tensor = _FakeLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, scale, bias, multipliers, grid, product_type(x), read
    )
    return result


def fake_weight(
    weight: Tensor,
    scale: Tensor,
    multipliers: Tensor | None,
    grid: Grid,
    kind: torch.dtype = torch.float32,
) -> Tensor:
    """`weight` [..., columns] on its grid, as `kind`.

    `scale` is [..., 1], `multipliers` [..., groups].
    """
    zero = scale.new_zeros(())
    if multipliers is None:
        return learned_fake_quantize(weight, scale, zero, grid, kind=kind)
    grouped, factors = in_groups(weight, multipliers.shape[-1]), multipliers[..., None]
    factors = factors.to(scale.dtype)
    result = learned_fake_quantize(grouped, scale[..., None], zero, grid, factors, kind=kind)
    return result.flatten(-2)


class _FakeLinear(torch.autograd.Function):
    """`linear(x, fake_weight(...), bias)`, the weight put on its grid anew for each product."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        multipliers: Tensor | None,
        grid: Grid,
        kind: torch.dtype,
        read: Read,
    ) -> Tensor:
        values = SCRATCH.like(weight, "values", kind)
        for w, s, m, into in _weight_chunks(weight, scale, multipliers, values):
            buffer = SCRATCH.like(w, "buffer") if kind != w.dtype else into
            _weight_ratio(w, s, m, out=buffer)
            _weight_values(buffer, s, m, grid, out=buffer)
            if buffer is not into:
                into.copy_(buffer)
        x = x.to(kind)
        ctx.grid, ctx.kind, ctx.ends = grid, kind, None
        kept: tuple[Tensor | None, ...] = (x, None, None)
        if read.source is not None and read.grid is not None:
            kept = read.source.detach(), read.grid.scale.detach(), read.grid.multiplier
            ctx.ends = read.grid.ends()
        ctx.save_for_backward(*kept, weight, scale, multipliers)
        return linear(x, values, None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, input_scale, multiplier, weight, scale, multipliers = ctx.saved_tensors
        if ctx.ends is not None:
            x = input_values(x, input_scale, multiplier, ctx.ends, ctx.kind)
        to_x, to_weight, to_scale, to_bias = ctx.needs_input_grad[:4]
        gradient = gradients[0].to(x.dtype)
        outputs = gradient.reshape(-1, gradient.shape[-1])
        found = (outputs.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
        values, sums = SCRATCH.like(weight, "values", x.dtype), torch.empty_like(scale)
        bound = ctx.grid.qmax + 0.5
        parts = _weight_chunks(weight, scale, multipliers, values, found, sums)
        for w, s, m, into, incoming, total in parts:
            ratio = _weight_ratio(w, s, m, out=SCRATCH.like(w, "ratio"))
            buffer = SCRATCH.like(w, "buffer") if x.dtype != w.dtype else into
            _weight_values(ratio, s, m, ctx.grid, out=buffer)
            if to_scale:
                # s dŵ/ds is ŵ - w inside and ŵ where the code was clipped.
                each = torch.mul(incoming, buffer, out=SCRATCH.like(w, "each"))
                passed_inside(incoming, ratio, -bound, bound, out=incoming)
                torch.sum(each.addcmul_(incoming, w, value=-1.0), 1, keepdim=True, out=total)
            else:
                passed_inside(incoming, ratio, -bound, bound, out=incoming)
            if buffer is not into:
                into.copy_(buffer)
        return (
            gradient @ values if to_x else None,
            found if to_weight else None,
            sums / scale if to_scale else None,
            outputs.sum(0, dtype=weight.dtype) if to_bias else None,
            *[None] * 4,
        )


def _weight_chunks(
    weight: Tensor, scale: Tensor, multipliers: Tensor | None, *others: Tensor
) -> Iterator[tuple[Any, ...]]:
    """Rows of a weight, scales, multipliers as float32 [n, groups, 1] or None, and `others`."""
    count = rows_at_a_time(weight.shape[1])
    factors: Iterable[Tensor | None] = repeat(None)
    if multipliers is not None:
        factors = torch.split(multipliers[..., None].to(scale.dtype), count)
    return zip(
        torch.split(weight, count),
        torch.split(scale, count),
        factors,
        *(torch.split(other, count) for other in others),
        strict=False,
    )


def _weight_ratio(weight: Tensor, scale: Tensor, factors: Tensor | None, out: Tensor) -> Tensor:
    """The ratio u = w / (s m) of rows [n, in], in the memory of `out`."""
    if factors is None:
        return torch.div(weight, scale, out=out)
    groups = factors.shape[1]
    torch.div(in_groups(weight, groups), scale[..., None] * factors, out=in_groups(out, groups))
    return out


def _weight_values(
    ratio: Tensor, scale: Tensor, factors: Tensor | None, grid: Grid, out: Tensor
) -> Tensor:
    """The weights ŵ = s (m q) of ratios [n, in], in the memory of `out`."""
    centred_codes(ratio, grid.qmin, grid.qmax, out=out)
    if factors is not None:
        in_groups(out, factors.shape[1]).mul_(factors)
    return out.mul_(scale)
