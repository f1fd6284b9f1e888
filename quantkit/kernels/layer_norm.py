"""LayerNorm of a sum, with the quantization of its result.

    y = (z - mean z) / sqrt(var z + eps) * weight + bias,   z = x + residual

On a post-LayerNorm encoder y is read twice: as floats by the next residual sum, and as codes by
the next product. One kernel reads x and the residual once and writes both.
"""

import torch
from torch import Tensor

from quantkit.kernels.arithmetic import write_codes
from quantkit.kernels.inputs import Codes, Reads, arguments
from quantkit.kernels.launch import jit, power_of_two, tl, uses_triton

__all__ = ["layer_norm", "layer_norm_reference"]


def layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    reads: Reads,
    dtype: torch.dtype,
) -> tuple[Tensor, Codes | None]:
    """The norm in `dtype`, and its codes, which are made from the unrounded float32 norm.

    Args:
        x: [tokens, width], any float dtype.
        residual: the same, or None.
        weight: float32 [width].
        bias: float32 [width].
        eps: added to the variance.
        reads: what the next product reads.
        dtype: of the norm.
    """
    if not uses_triton(x):
        return layer_norm_reference(x, residual, weight, bias, eps, reads, dtype)
    tokens, width = x.shape
    normed = torch.empty((tokens, width), dtype=dtype, device=x.device)
    codes = None if reads.kind == "float" else reads.empty(tokens, width, x.device)
    _layer_norm[(tokens,)](
        x,
        x if residual is None else residual,
        weight,
        bias,
        normed,
        width,
        eps,
        *arguments(reads, codes, x),
        RESIDUAL=residual is not None,
        BLOCK=power_of_two(width),
    )
    return normed, codes


def layer_norm_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    reads: Reads,
    dtype: torch.dtype,
) -> tuple[Tensor, Codes | None]:
    """`layer_norm` in plain torch."""
    total = x.float() if residual is None else x.float() + residual.float()
    normed = torch.nn.functional.layer_norm(total, weight.shape, weight, bias, eps)
    return normed.to(dtype), None if reads.kind == "float" else reads.codes(normed)


@jit
def _layer_norm(
    x,
    residual,
    weight,
    bias,
    normed,
    width,
    eps,
    codes,
    token_scale,
    scale,
    offset,
    multiplier,
    KIND: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program, held in registers."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / width
    centred = tl.where(inside, total - mean, 0.0)
    spread = tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    shift = tl.load(bias + columns, mask=inside, other=0.0)
    value = centred / spread * gain + shift
    tl.store(normed + row * width + columns, value, mask=inside)
    if KIND != "float":
        write_codes(
            value,
            row,
            columns,
            width,
            codes,
            token_scale,
            scale,
            offset,
            multiplier,
            KIND,
            MULTIPLIED,
            LOW,
            HIGH,
        )
