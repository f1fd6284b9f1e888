"""The integer product: codes times codes, summed in int32, scaled once at the end.

    y[m, n] = f( (sum_k x[m, k] w[n, k] - offset sum_k w[n, k]) (s_x s_w[n]) + bias[n] )

The sum over w alone is a constant of the weight and stands in `correction`. With float inputs
(weight-only quantization) there is no offset and no s_x, and the sum is float32's.

f may be an activation function, and y may leave the kernel as the next product's codes: then
the widest tensor of a layer is never written as floats.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit.kernels.arithmetic import activate, code_of
from quantkit.kernels.inputs import FLOATS, Codes, Function, Reads, apply_reference
from quantkit.kernels.launch import blocks, jit, tl, uses_triton
from quantkit.kernels.matrix import Matrix
from quantkit.kernels.tuning import HOPPER, SINGLE, Tiles, tiles_for
from quantkit.numerics import integer_linear

__all__ = ["Operand", "product", "product_reference"]


@dataclass(frozen=True)
class Operand:
    """A weight, its bias, and the correction for the zero point of what it is multiplied with.

    bias: float32 [out]; correction: int32 [out], -offset times the sums of the weight's rows.
    """

    matrix: Matrix
    bias: Tensor
    correction: Tensor

    @classmethod
    def of(cls, matrix: Matrix, bias: Tensor | None, reads: Reads) -> "Operand":
        """For inputs that are read as `reads`."""
        nothing = torch.zeros_like(matrix.scale)
        offset = nothing.to(torch.int32) if reads.offset is None else reads.offset
        return cls(matrix, nothing if bias is None else bias, -offset * matrix.sums())


def product(
    x: Tensor | Codes,
    weight: Operand,
    dtype: torch.dtype,
    function: Function = "none",
    reads: Reads = FLOATS,
) -> Tensor | Codes:
    """`x` [tokens, in] times a weight: [tokens, out] in `dtype`, or as static codes.

    Args:
        x: codes, or floats.
        weight: int8 or 4-bit codes.
        dtype: of a float result.
        function: of the result.
        reads: of kind float or static: what the next product reads of it.
    """
    values = x.values if isinstance(x, Codes) else x
    if not uses_triton(values):
        return product_reference(x, weight, dtype, function, reads)
    tokens, outputs = values.shape[0], weight.matrix.outputs
    codes = None if reads.kind == "float" else reads.empty(tokens, outputs, values.device)
    result = values.new_empty((tokens, outputs), dtype=dtype) if codes is None else codes.values
    settings = _settings(x, weight.matrix, function, reads)

    def run(tiles: Tiles) -> None:
        options = tiles.options()
        if weight.matrix.half:
            options["BLOCK_K"] = 2 * weight.matrix.half
        whole = weight.matrix.inputs % options["BLOCK_K"] == 0
        grid = blocks(outputs, tiles.outputs), blocks(tokens, tiles.tokens)
        _product[grid](*_pointers(x, weight, reads, result), **settings, **options, WHOLE=whole)

    key = (values.dtype, outputs, weight.matrix.inputs, *settings.values(), result.dtype)
    tried = SINGLE if values.dtype == torch.float32 else HOPPER
    run(tiles_for(key, tokens, run, values.device, tried))
    return result if codes is None else codes


def product_reference(
    x: Tensor | Codes,
    weight: Operand,
    dtype: torch.dtype,
    function: Function = "none",
    reads: Reads = FLOATS,
) -> Tensor | Codes:
    """`product` in plain torch: `numerics.integer_linear` around a shifted zero."""
    wide, scale = weight.matrix.wide(), weight.matrix.scale[:, None]
    if isinstance(x, Codes):
        per_token = x.scale if x.scale.numel() == 1 else x.scale[:, None]
        result = integer_linear(x.values, per_token, x.offset, wide, scale, weight.bias)
    else:
        result = torch.nn.functional.linear(x.float(), wide * scale, weight.bias)
    floats, codes = apply_reference(result, function, reads)
    return floats.to(dtype) if codes is None else codes


def _settings(
    x: Tensor | Codes, matrix: Matrix, function: Function, reads: Reads
) -> dict[str, Any]:
    """What the kernel is compiled for."""
    low, high = reads.ends
    return {
        "HALF": matrix.half,
        "GROUPED": matrix.multipliers is not None,
        "INTEGER": isinstance(x, Codes),
        "PER_TOKEN": isinstance(x, Codes) and x.scale.numel() > 1,
        "FUNCTION": function,
        "KIND": reads.kind,
        "MULTIPLIED": reads.multiplier is not None,
        "LOW": low,
        "HIGH": high,
    }


def _pointers(
    x: Tensor | Codes, weight: Operand, reads: Reads, result: Tensor
) -> tuple[object, ...]:
    matrix = weight.matrix
    values, scale = (x.values, x.scale) if isinstance(x, Codes) else (x, weight.bias)
    return (
        values,
        matrix.codes,
        weight.bias if matrix.multipliers is None else matrix.multipliers,
        scale,
        matrix.scale,
        weight.correction,
        weight.bias,
        result,
        scale if reads.scale is None else reads.scale,
        scale if reads.offset is None else reads.offset,
        scale if reads.multiplier is None else reads.multiplier,
        values.shape[0],
        matrix.outputs,
        matrix.inputs,
        matrix.codes.shape[1],
        matrix.group,
    )


@jit
def _times(w, x, total, INTEGER: tl.constexpr):
    """The total so far and w x: int8 in int32, floats in float32 without rounding to tf32."""
    if INTEGER:
        total = tl.dot(w, x, total, out_dtype=tl.int32)
    else:
        total = tl.dot(w.to(x.dtype), x, total, input_precision="ieee")
    return total


@jit
def _inputs(x, m, k, tokens, inputs, WHOLE: tl.constexpr):
    """Tile [k, m] of the inputs [tokens, in], transposed."""
    inside = (m < tokens)[None, :]
    if not WHOLE:
        inside = inside & (k < inputs)[:, None]
    return tl.load(x + m[None, :].to(tl.int64) * inputs + k[:, None], mask=inside, other=0)


@jit
def _product(
    x,
    codes,
    multipliers,
    input_scale,
    weight_scale,
    correction,
    bias,
    result,
    scale,
    offset,
    multiplier,
    tokens,
    outputs,
    inputs,
    stride,
    group,
    HALF: tl.constexpr,
    GROUPED: tl.constexpr,
    INTEGER: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    FUNCTION: tl.constexpr,
    KIND: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """A tile [n, m] of the transposed result, weights on the left.

    The tensor cores take their left operand from registers, where 4-bit codes are unpacked.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = n < outputs
    rows = n[:, None].to(tl.int64) * stride
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32 if INTEGER else tl.float32)
    for start in range(0, inputs, BLOCK_K):
        if HALF == 0:
            k = start + tl.arange(0, BLOCK_K)
            inside = there[:, None]
            if not WHOLE:
                inside = inside & (k < inputs)[None, :]
            w = tl.load(codes + rows + k[None, :], mask=inside, other=0)
            total = _times(w, _inputs(x, m, k, tokens, inputs, WHOLE), total, INTEGER)
        else:
            byte = start // 2 + tl.arange(0, HALF)
            both = tl.load(codes + rows + byte[None, :], mask=there[:, None], other=0)
            both = both.to(tl.int8, bitcast=True)
            low, high = (both << 4) >> 4, both >> 4
            if GROUPED:
                place = multipliers + n.to(tl.int64) * (inputs // group)
                first, second = start // group, (start + HALF) // group
                low = low * tl.load(place + first, mask=there, other=0)[:, None]
                last = there & (second * group < inputs)
                high = high * tl.load(place + second, mask=last, other=0)[:, None]
            k = start + tl.arange(0, HALF)
            total = _times(low, _inputs(x, m, k, tokens, inputs, WHOLE), total, INTEGER)
            total = _times(high, _inputs(x, m, k + HALF, tokens, inputs, WHOLE), total, INTEGER)
    factor = tl.load(weight_scale + n, mask=there, other=0.0)[:, None]
    if INTEGER:
        total += tl.load(correction + n, mask=there, other=0)[:, None]
        if PER_TOKEN:
            factor = tl.load(input_scale + m, mask=m < tokens, other=0.0)[None, :] * factor
        else:
            factor = tl.load(input_scale) * factor
    value = total.to(tl.float32) * factor + tl.load(bias + n, mask=there, other=0.0)[:, None]
    value = activate(value, FUNCTION)
    if KIND == "static":
        if MULTIPLIED:
            value = value * tl.load(multiplier + n, mask=there, other=0.0)[:, None]
        value = code_of(value, tl.load(scale), tl.load(offset).to(tl.float32), LOW, HIGH)
    place = result + m[None, :].to(tl.int64) * outputs + n[:, None]
    tl.store(place, value.to(result.dtype.element_ty), mask=there[:, None] & (m < tokens)[None, :])
