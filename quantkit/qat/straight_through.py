"""Products on grids with straight-through gradients, at little more than the cost of the product.

`numerics.learned_fake_quantize` says what is computed. On a CPU the same is done here a few rows
at a time, which stay in the cache through all the steps, in place, and computed again for the
backward pass instead of kept: no copy of a weight or a mask outlives a product. On a GPU the
kernels of `kernels.fake_quant` run, and under torch.compile, which makes its own, the definition.
"""

import threading
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from quantkit.integers import in_groups
from quantkit.kernels.fake_quant import learned_fake_quantize
from quantkit.numerics import Grid, centred_codes

__all__ = ["fake_input", "fake_linear", "fake_weight"]

# Numbers that are worked on at a time. Three float32 buffers of this size fit into 2 MB, the
# second-level cache of a core of recent servers.
CHUNK = 1 << 17


def fake_input(
    x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, multiplier: Tensor | None
) -> Tensor:
    """`x` [..., in] times `multiplier` [in] on its grid, float32.

    Args:
        x: any float type; computed in float32.
        scale: float32 scalar.
        zero_point: scalar, a real number that is rounded.
        grid: of the codes.
        multiplier: without a gradient; None: all 1.
    """
    x = x.float()
    if not _in_chunks(x):
        smoothed = x if multiplier is None else x * multiplier
        return learned_fake_quantize(smoothed, scale, zero_point, grid)
    result: Tensor = _FakeInput.apply(  # type: ignore[no-untyped-call]
        x, scale, zero_point, multiplier, grid
    )
    return result


def fake_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    multipliers: Tensor | None,
    grid: Grid,
    bias: Tensor | None,
) -> Tensor:
    """`x` [..., in] times `weight` [out, in] on its grid, transposed, plus `bias` [out].

    The product is computed in autocast's type, if that is on, and the grid in float32.

    Args:
        x: on a grid of its own, or not.
        weight: latent, float32.
        scale: float32 [out, 1].
        multipliers: int8 [out, groups], without a gradient; None: all 1.
        grid: symmetric.
        bias: None without.
    """
    if not _in_chunks(x):
        return linear(x, fake_weight(weight, scale, multipliers, grid), bias)
    result: Tensor = _FakeLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, scale, bias, multipliers, grid, _product_type(x)
    )
    return result


def fake_weight(weight: Tensor, scale: Tensor, multipliers: Tensor | None, grid: Grid) -> Tensor:
    """`weight` [..., columns] on its grid; `scale` is [..., 1], `multipliers` [..., groups]."""
    zero = scale.new_zeros(())
    if multipliers is None:
        return learned_fake_quantize(weight, scale, zero, grid)
    grouped = in_groups(weight, multipliers.shape[-1])
    factors = multipliers[..., None].to(scale.dtype)
    return learned_fake_quantize(grouped, scale[..., None], zero, grid, factors).flatten(-2)


class _Scratch(threading.local):
    """Memory that is used from one product to the next, and so lies in the cache; per thread.

    It is as large as the largest weight. What is in it counts until the function that took it
    returns.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def like(self, tensor: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialized memory of the shape of `tensor`."""
        key = name, dtype or tensor.dtype
        if key not in self._memory or self._memory[key].numel() < tensor.numel():
            with torch.inference_mode(False):  # whoever asks first: it is for training too
                self._memory[key] = torch.empty(tensor.numel(), dtype=key[1])
        return self._memory[key][: tensor.numel()].view(tensor.shape)


_SCRATCH = _Scratch()


class _FakeInput(torch.autograd.Function):
    """`learned_fake_quantize(x * multiplier, ...)`, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        multiplier: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        zero = float(torch.round(zero_point).clamp(grid.qmin, grid.qmax))
        low, high = grid.qmin - zero, grid.qmax - zero
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows, into in _chunks(x, result):
            _input_ratio(rows, multiplier, scale, into)
            centred_codes(into, low, high, out=into).mul_(scale)
        ctx.save_for_backward(x, result, scale, multiplier)
        ctx.ends = low - 0.5, high + 0.5
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, result, scale, multiplier = ctx.saved_tensors
        learns_scale, learns_zero = ctx.needs_input_grad[1:3]
        low, high = ctx.ends
        passed = torch.empty_like(result)
        # Over all places: the sums of g x̂, of g u inside, of g, and of g inside.
        sums = [torch.zeros((), dtype=scale.dtype) for _ in range(4)]
        for rows, values, incoming, into in _chunks(x, result, gradients[0], passed):
            ratio = _input_ratio(rows, multiplier, scale, _SCRATCH.like(into, "ratio"))
            _inside(incoming, ratio, low, high, out=into)
            if learns_scale:
                sums[0] += torch.dot(incoming.flatten(), values.flatten())
                sums[1] += torch.dot(into.flatten(), ratio.flatten())
            if learns_zero:
                sums[2] += incoming.sum()
                sums[3] += into.sum()
            if multiplier is not None:
                into.mul_(multiplier)
        to_scale = sums[0] / scale - sums[1] if learns_scale else None
        to_zero = (sums[3] - sums[2]) * scale if learns_zero else None
        return passed, to_scale, to_zero, None, None


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
    ) -> Tensor:
        values = _SCRATCH.like(weight, "values", kind)
        for w, s, m, into in _weight_chunks(weight, scale, multipliers, values):
            buffer = _SCRATCH.like(w, "buffer") if kind != w.dtype else into
            _weight_ratio(w, s, m, out=buffer)
            _weight_values(buffer, s, m, grid, out=buffer)
            if buffer is not into:
                into.copy_(buffer)
        x = x.to(kind)
        ctx.save_for_backward(x, weight, scale, multipliers)
        ctx.grid = grid
        return linear(x, values, None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, scale, multipliers = ctx.saved_tensors
        to_x, to_weight, to_scale, to_bias = ctx.needs_input_grad[:4]
        gradient = gradients[0].to(x.dtype)
        outputs = gradient.reshape(-1, gradient.shape[-1])
        found = (outputs.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
        values, sums = _SCRATCH.like(weight, "values", x.dtype), torch.empty_like(scale)
        bound = ctx.grid.qmax + 0.5
        parts = _weight_chunks(weight, scale, multipliers, values, found, sums)
        for w, s, m, into, incoming, total in parts:
            ratio = _weight_ratio(w, s, m, out=_SCRATCH.like(w, "ratio"))
            buffer = _SCRATCH.like(w, "buffer") if x.dtype != w.dtype else into
            _weight_values(ratio, s, m, ctx.grid, out=buffer)
            if to_scale:
                # s dŵ/ds is ŵ - w inside and ŵ where the code was clipped.
                each = torch.mul(incoming, buffer, out=_SCRATCH.like(w, "each"))
                _inside(incoming, ratio, -bound, bound, out=incoming)
                torch.sum(each.addcmul_(incoming, w, value=-1.0), 1, keepdim=True, out=total)
            else:
                _inside(incoming, ratio, -bound, bound, out=incoming)
            if buffer is not into:
                into.copy_(buffer)
        return (
            gradient @ values if to_x else None,
            found if to_weight else None,
            sums / scale if to_scale else None,
            outputs.sum(0, dtype=weight.dtype) if to_bias else None,
            None,
            None,
            None,
        )


def _in_chunks(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _product_type(x: Tensor) -> torch.dtype:
    """What autocast would compute a product of `x` in."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return torch.float32


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows [n, in] of tensors [..., in], CHUNK numbers each at most."""
    matrices = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    count = max(1, CHUNK // matrices[0].shape[1])
    return zip(*(torch.split(matrix, count) for matrix in matrices), strict=True)


def _weight_chunks(
    weight: Tensor, scale: Tensor, multipliers: Tensor | None, *others: Tensor
) -> Iterator[tuple[Any, ...]]:
    """Rows of a weight, scales, multipliers as float32 [n, groups, 1] or None, and `others`."""
    count = max(1, CHUNK // weight.shape[1])
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


def _input_ratio(rows: Tensor, multiplier: Tensor | None, scale: Tensor, out: Tensor) -> Tensor:
    """The ratio u = x m / s of rows [n, in], in the memory of `out`."""
    if multiplier is None:
        return torch.div(rows, scale, out=out)
    return torch.mul(rows, multiplier, out=out).div_(scale)


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


def _inside(gradient: Tensor, ratio: Tensor, low: float, high: float, out: Tensor) -> None:
    """The gradient where `low` < `ratio` < `high`, else 0, in the memory of `out`.

    The derivative of a clamp is just that, as one pass; comparisons would be four times slower.
    """
    torch.ops.aten.hardtanh_backward.grad_input(gradient, ratio, low, high, grad_input=out)
