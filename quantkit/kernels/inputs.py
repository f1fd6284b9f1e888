"""How an integer product wants its input, and what it gets.

A producer (a LayerNorm, a GELU, an attention) is told what its reader wants, and writes codes
beside its floats or instead of them: no tensor is read only to be quantized.

Codes lie around zero as int8: code - 128 of an unsigned 8-bit code, so that the tensor cores'
int8 x int8 product serves; the zero point moves along (`offset` = zero point - 128).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from quantkit.kernels.arithmetic import activate as activated
from quantkit.kernels.arithmetic import write_codes
from quantkit.kernels.launch import jit, power_of_two, tl, uses_triton
from quantkit.numerics import (
    asymmetric_grid,
    centre,
    quantize,
    quantize_float8,
    scale_and_zero_point,
    symmetric_grid,
)

__all__ = ["FLOATS", "Codes", "Function", "Reads", "apply", "apply_reference", "arguments"]

Function = Literal["none", "gelu", "gelu_tanh", "relu"]
FLOAT8_MAX = 448.0  # of e4m3


@dataclass(frozen=True)
class Codes:
    """A quantized tensor.

    values: int8 (or float8 e4m3) [tokens, width]; scale: float32 [1], or [tokens] with one per
    token; offset: int32 [1], what is subtracted from `values` before they are scaled.
    """

    values: Tensor
    scale: Tensor
    offset: Tensor

    def of(self, tokens: Tensor) -> "Codes":
        """The codes of some tokens, int32 [n]."""
        # As bytes: torch does not pick rows of float8 everywhere.
        values = self.values.view(torch.int8)[tokens].view(self.values.dtype)
        scale = self.scale if self.scale.numel() == 1 else self.scale[tokens]
        return Codes(values, scale, self.offset)


@dataclass(frozen=True)
class Reads:
    """What a reader makes of its input.

    float    nothing
    static   codes of one calibrated scale and zero point
    token    codes with a symmetric scale for each token
    float8   e4m3 values with a scale for each token

    scale: float32 [1] of static codes; offset: int32 [1], 0 but of static ones; multiplier: float32
    [width], the reciprocal of a smoothing vector, which comes before all; bits of the codes.
    """

    kind: Literal["float", "static", "token", "float8"] = "float"
    scale: Tensor | None = None
    offset: Tensor | None = None
    multiplier: Tensor | None = None
    bits: int = 8

    @classmethod
    def static(
        cls, scale: Tensor, zero_point: Tensor, multiplier: Tensor | None, bits: int
    ) -> "Reads":
        """From what a packed checkpoint holds: float32 and uint8 scalars."""
        offset = zero_point.to(torch.int32) - centre(asymmetric_grid(bits))
        return cls("static", scale.reshape(1), offset.reshape(1), multiplier, bits)

    @classmethod
    def token(cls, multiplier: Tensor | None, bits: int, device: torch.device | str) -> "Reads":
        """Codes with a symmetric scale for each token."""
        zero = torch.zeros((1,), dtype=torch.int32, device=device)
        return cls("token", None, zero, multiplier, bits)

    @classmethod
    def float8(cls, device: torch.device | str) -> "Reads":
        """Float8 values with a scale for each token."""
        return cls("float8", None, torch.zeros((1,), dtype=torch.int32, device=device))

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest code around zero."""
        if self.kind == "float8":
            return -FLOAT8_MAX, FLOAT8_MAX
        if self.kind == "token":
            grid = symmetric_grid(self.bits)
            return float(grid.qmin), float(grid.qmax)
        unsigned = asymmetric_grid(self.bits)
        middle = centre(unsigned)
        return float(unsigned.qmin - middle), float(unsigned.qmax - middle)

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return torch.float8_e4m3fn if self.kind == "float8" else torch.int8

    def empty(self, tokens: int, width: int, device: torch.device) -> Codes:
        """Room for the codes of [tokens, width]."""
        values = torch.empty((tokens, width), dtype=self.dtype, device=device)
        scale = self.scale
        if scale is None:
            scale = torch.empty((tokens,), dtype=torch.float32, device=device)
        return Codes(values, scale, self._shift())

    def codes(self, x: Tensor) -> Codes:
        """The codes of `x` [tokens, width], in plain torch."""
        x = x.float() if self.multiplier is None else x.float() * self.multiplier
        if self.kind == "float8":
            values, scales = quantize_float8(x)
            return Codes(values, scales.squeeze(-1), self._shift())
        scale = self.scale
        unsigned = asymmetric_grid(self.bits)
        if scale is None:
            bound = x.abs().amax(-1, keepdim=True)
            scale, _ = scale_and_zero_point(-bound, bound, symmetric_grid(self.bits))
        codes = quantize(x, scale, self._shift() + centre(unsigned), unsigned)
        values = (codes.to(torch.int16) - centre(unsigned)).to(torch.int8)
        return Codes(values, scale.reshape(-1), self._shift())

    def _shift(self) -> Tensor:
        if self.offset is None:
            raise ValueError("what is read as floats has no codes")
        return self.offset


FLOATS = Reads()


def apply(
    x: Tensor, function: Function, reads: Reads, *, keep: bool = True
) -> tuple[Tensor, Codes | None]:
    """An activation function, and codes of its result as the next product reads them.

    Args:
        x: [tokens, width], any float dtype; computed in float32.
        function: "none" only quantizes: with `reads.kind` token, dynamic quantization.
        reads: what the next product reads.
        keep: whether the float result is wanted too, in x's dtype; else `x` is given back.
    """
    if function == "none" and reads.kind == "float":
        return x, None
    if not uses_triton(x):
        return apply_reference(x, function, reads)
    tokens, width = x.shape
    keep = keep and function != "none"
    result = torch.empty_like(x) if keep else x
    codes = None if reads.kind == "float" else reads.empty(tokens, width, x.device)
    _apply[(tokens,)](
        x,
        result,
        width,
        *arguments(reads, codes, x),
        FUNCTION=function,
        KEEP=keep,
        BLOCK=power_of_two(width),
    )
    return result, codes


def apply_reference(x: Tensor, function: Function, reads: Reads) -> tuple[Tensor, Codes | None]:
    """`apply` in plain torch."""
    functions: dict[str, Any] = {
        "none": lambda value: value,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda value: torch.nn.functional.gelu(value, approximate="tanh"),
        "relu": torch.relu,
    }
    result: Tensor = functions[function](x.float())
    return result.to(x.dtype), None if reads.kind == "float" else reads.codes(result)


def arguments(reads: Reads, codes: Codes | None, filler: Tensor) -> tuple[object, ...]:
    """What kernels that end in `write_codes` take; `filler` stands where nothing is read."""
    low, high = reads.ends
    return (
        filler if codes is None else codes.values,
        filler if codes is None else codes.scale,
        filler if reads.scale is None else reads.scale,
        filler if reads.offset is None else reads.offset,
        filler if reads.multiplier is None else reads.multiplier,
        reads.kind,
        reads.multiplier is not None,
        low,
        high,
    )


@jit
def _apply(
    x,
    result,
    width,
    codes,
    token_scale,
    scale,
    offset,
    multiplier,
    KIND: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    FUNCTION: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    value = activated(value, FUNCTION)
    if KEEP:
        tl.store(result + row * width + columns, value, mask=inside)
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
