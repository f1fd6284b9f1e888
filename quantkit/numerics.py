"""The one numeric definition: how quantkit turns reals into integers and back.

It is ONNX's, because ONNX is what runs in the end (`QuantizeLinear`, opset 13 and later):

    q  = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
    x̂ = (q - zero_point) * scale

A division, then rounding, then the zero point, in this order. Nothing else in the package
makes a scale or rounds to a grid.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Grid",
    "asymmetric_grid",
    "centre",
    "centred_codes",
    "dequantize",
    "fake_quantize",
    "integer_linear",
    "learned_fake_quantize",
    "quantize",
    "quantize_float8",
    "scale_and_zero_point",
    "static_grid",
    "symmetric_grid",
]


@dataclass(frozen=True)
class Grid:
    """The integers `qmin..qmax` and the torch dtype that carries them."""

    qmin: int
    qmax: int
    dtype: torch.dtype

    @property
    def symmetric(self) -> bool:
        """Whether the grid is its own mirror image, so that zero has code 0."""
        return self.qmin == -self.qmax


def symmetric_grid(bits: int) -> Grid:
    """Signed narrow grid: 8 bits are [-127, 127], 4 bits [-7, 7], carried in int8.

    The code -128 is left out, so that negating a weight negates its code.
    """
    top = 2 ** (bits - 1) - 1
    return Grid(-top, top, torch.int8)


def asymmetric_grid(bits: int) -> Grid:
    """Unsigned full grid: 8 bits are [0, 255], carried in uint8."""
    return Grid(0, 2**bits - 1, torch.uint8)


def centre(grid: Grid) -> int:
    """The zero point that makes an unsigned grid symmetric around zero: 128 of 8 bits.

    Activations with `symmetric: true` use it, so that one unsigned kernel serves both kinds.
    """
    return (grid.qmax + 1 - grid.qmin) // 2 + grid.qmin


def scale_and_zero_point(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (the grid's dtype) that cover the range `low..high`.

    Symmetric grid: `max(|low|, |high|) / qmax` and 0. Otherwise the range is first widened
    to contain 0, so that zero (padding, ReLU) is exact. A range too small for a normal
    float32 scale gets scale 1.

    `low` and `high` have one shape; both results have it too. The range -1..3 on 8
    asymmetric bits gives scale 4/255 and zero point round(63.75) = 64.
    """
    low, high = low.to(torch.float32), high.to(torch.float32)
    if grid.symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / grid.qmax
    else:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = (high - low) / (grid.qmax - grid.qmin)
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    if grid.symmetric:
        return scale, torch.zeros_like(scale).to(grid.dtype)
    zero_point = (grid.qmin - torch.round(low / scale)).clamp(grid.qmin, grid.qmax)
    return scale, zero_point.to(grid.dtype)


def centred_codes(ratio: Tensor, low: Any, high: Any, out: Tensor | None = None) -> Tensor:  # noqa: ANN401
    """The integers q - zero_point, as floats, of `ratio` = x / scale.

    `low` and `high` are qmin - zero_point and qmax - zero_point, tensors or numbers. All of them
    are integers, so clamping before the zero point is added gives the definition's codes. With
    `out`, which may be `ratio` itself, no memory is taken.
    """
    return torch.round(ratio, out=out).clamp_(low, high)


def static_grid(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (uint8) of unsigned codes that cover the range `low..high`.

    `symmetric`: the codes lie around `centre`, which stays the zero point whatever the range.
    """
    unsigned, signed = asymmetric_grid(bits), symmetric_grid(bits)
    scale, zero_point = scale_and_zero_point(low, high, signed if symmetric else unsigned)
    if symmetric:
        zero_point = zero_point.to(unsigned.dtype) + centre(unsigned)
    return scale, zero_point


def _code(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """The code of `x` as a float: the definition itself."""
    return (torch.round(x / scale) + zero_point.to(x.dtype)).clamp(grid.qmin, grid.qmax)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Codes of `x`, in the grid's dtype; `scale` and `zero_point` broadcast against `x`.

    `x` must be finite: NaN has no code (ONNX Runtime gives it 0 without a word).
    Scale 0.5, zero point 0: the values 0.25, 0.75, 1.25 have the codes 0, 2, 2.
    """
    return _code(x, scale.to(x.dtype), zero_point, grid).to(grid.dtype)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """`(codes - zero_point) * scale`, in the scale's dtype."""
    return (codes.to(scale.dtype) - zero_point.to(scale.dtype)) * scale


class _FakeQuantize(torch.autograd.Function):
    """x̂ forward; backward the straight-through gradient (Bengio et al. 2013, clipped)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:  # noqa: ANN401
        scale = scale.to(x.dtype)
        offset = torch.round(x / scale) + zero_point.to(x.dtype)
        ctx.save_for_backward((offset >= grid.qmin) & (offset <= grid.qmax))
        return dequantize(offset.clamp(grid.qmin, grid.qmax), scale, zero_point)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Quantize and dequantize `x`; the gradient passes where the code was not clipped.

    The value equals `dequantize(quantize(x, ...), ...)` bit for bit.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        scale = scale.to(x.dtype)
        return dequantize(_code(x, scale, zero_point, grid), scale, zero_point)
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, grid)  # type: ignore[no-untyped-call]
    return result


class _LearnedFakeQuantize(torch.autograd.Function):
    """x̂ forward; backward the straight-through gradients of x, scale and zero point."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        multipliers: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        zero = torch.round(zero_point).clamp(grid.qmin, grid.qmax)
        ratio = x / (scale if multipliers is None else scale * multipliers)
        low, high = grid.qmin - zero, grid.qmax - zero
        inside = (ratio > low - 0.5) & (ratio < high + 0.5)
        codes = centred_codes(ratio, low, high)
        units = codes if multipliers is None else codes * multipliers
        ctx.save_for_backward(x, scale, zero_point, units, inside)
        return units * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, scale, zero_point, units, inside = ctx.saved_tensors
        gradient = gradients[0]
        passed = gradient * inside
        to_scale = to_zero = None
        if ctx.needs_input_grad[1]:
            each = gradient * units - passed * (x / scale)
            to_scale = each.sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            to_zero = ((passed - gradient) * scale).sum_to_size(zero_point.shape)
        return passed, to_scale, to_zero, None, None


def learned_fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, multipliers: Tensor | None = None
) -> Tensor:
    """Quantize and dequantize `x` with a range that can be learnt: x̂ = s · (m · (q - z)).

    The value equals `dequantize(quantize(x, s · m, z), ...)` bit for bit, m multiplied into the
    integers. Gradients are straight-through, with q - z and u = x / (s m):

        dx̂/dx = 1 inside,               0 where q was clipped
        dx̂/ds = m (q - z - u) inside,   m (q - z) where q was clipped, which is qmin or qmax
        dx̂/dz = 0 inside,               -s m where q was clipped

    Inside is qmin - 1/2 < u + z < qmax + 1/2, the ends not included.
    (LSQ, Esser et al. 2020, eq. 3; LSQ+, Bhalgat et al. 2020, for z; without their gradient
    scale, which is for SGD: Adam undoes it.) On the grid -7..7 with s = 0.5 the value 1.1 has
    q = 2 and dx̂/ds = 2 - 2.2 = -0.2; the value 9 has q = 7 and dx̂/ds = 7.

    Args:
        x: float32, any shape.
        scale: s, float32, broadcasts against `x`.
        zero_point: z, a real number: rounded, and clamped to the grid.
        grid: of q.
        multipliers: m, positive integers as float32, broadcast against `x`; None: all 1.
    """
    result: Tensor = _LearnedFakeQuantize.apply(  # type: ignore[no-untyped-call]
        x, scale, zero_point, multipliers, grid
    )
    return result


def integer_linear(
    input_codes: Tensor,
    input_scale: Tensor,
    input_zero_point: Tensor,
    weight_codes: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """`float(accumulator) * (input_scale * weight_scale) + bias`, as ONNX Runtime computes it.

    The accumulator `(input_codes - input_zero_point) @ weight_codes.T` is summed in the
    scale's float dtype, where products of 8-bit codes are exact up to 2**24 in float32:
    518 products of full scale and one sign in a row; real sums stay far below, and then
    the result is ONNX Runtime's `MatMulIntegerToFloat` bit for bit.

    Shapes: input_codes [..., in] uint8, input_scale scalar or one per token [..., 1],
    weight_codes [out, in] int8, weight_scale [out, 1], bias [out]; the result is [..., out] in
    the dtype of `weight_scale`.
    """
    dtype = weight_scale.dtype
    centred = input_codes.to(dtype) - input_zero_point.to(dtype)
    accumulator = torch.nn.functional.linear(centred, weight_codes.to(dtype))
    result = accumulator * (input_scale.to(dtype) * weight_scale.squeeze(1))
    return result if bias is None else result + bias


def quantize_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """The float8 e4m3 values of `x` [..., in] and the scale of each row [..., 1], float32.

    A row's largest value becomes 448, the largest of e4m3; the cast rounds half to even. A row
    too small for a normal float32 scale gets scale 1. The row 1, -2 has the scale 2/448.
    """
    top = torch.finfo(torch.float8_e4m3fn).max
    scale = x.to(torch.float32).abs().amax(-1, keepdim=True) / top
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    return (x / scale).clamp(-top, top).to(torch.float8_e4m3fn), scale
