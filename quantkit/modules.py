"""Quantized modules: they hold integers, and compute what the exported file computes.

No ONNX here and no policy: which module is quantized, and with which scales, is decided
elsewhere and handed in as tensors.
"""

import torch
from torch import Tensor, nn

from quantkit.algorithms.hadamard import as_read
from quantkit.integers import Integers, unpack_nibbles, widened
from quantkit.numerics import (
    asymmetric_grid,
    centre,
    integer_linear,
    quantize,
    scale_and_zero_point,
    symmetric_grid,
)

__all__ = [
    "InputQuantizer",
    "QuantEmbedding",
    "QuantLinear",
    "Quantizer",
    "TokenQuantizer",
    "among",
]


class Quantizer(nn.Module):
    """Codes of a Linear's input, after an optional channel multiplier and Hadamard rotation.

    Linears that read the same tensor (query, key and value) share one of these: the first
    owns it as its submodule `input`, the others refer to it.
    """

    multiplier: Tensor | None

    def __init__(self, multiplier: Tensor | None, bits: int, rotation: int | None = None) -> None:
        super().__init__()
        self.register_buffer("multiplier", multiplier)
        self.rotation = rotation
        self.grid = asymmetric_grid(bits)
        self.bits = bits

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of `x` [..., in] as uint8 [..., in], their scale and zero point."""
        return self.codes(self.as_read(x))

    def as_read(self, x: Tensor) -> Tensor:
        """`x` [..., in] as it is put on the grid: multiplied, then rotated."""
        return as_read(x, self.multiplier, self.rotation)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of an `x` that is multiplied and rotated already."""
        raise NotImplementedError


class InputQuantizer(Quantizer):
    """Static codes: one calibrated scale for the whole tensor.

    Args:
        scale: float32 scalar.
        zero_point: uint8 scalar.
        multiplier: float32 [in], the reciprocal of the smoothing vector; None without.
        bits: of the codes, which uint8 carries.
        rotation: the block of the Hadamard rotation; None without.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        multiplier: Tensor | None,
        bits: int = 8,
        rotation: int | None = None,
    ) -> None:
        super().__init__(multiplier, bits, rotation)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of an `x` [..., in] as it is read, the scalar scale and zero point."""
        return quantize(x, self.scale, self.zero_point, self.grid), self.scale, self.zero_point


class TokenQuantizer(Quantizer):
    """Dynamic codes: every token has a symmetric scale of its own.

    An answer depends neither on calibration nor on the texts beside it in a batch.

    Args:
        multiplier: float32 [in], the reciprocal of the smoothing vector; None without.
        bits: of the codes, which uint8 carries around a zero point in the middle.
        rotation: the block of the Hadamard rotation; None without.
    """

    def __init__(
        self, multiplier: Tensor | None, bits: int = 8, rotation: int | None = None
    ) -> None:
        super().__init__(multiplier, bits, rotation)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of an `x` [..., in] as it is read, scales [..., 1] and the scalar zero point."""
        bound = x.abs().amax(-1, keepdim=True)
        scale, _ = scale_and_zero_point(-bound, bound, symmetric_grid(self.bits))
        zero_point = torch.full((), centre(self.grid), dtype=self.grid.dtype, device=x.device)
        return quantize(x, scale, zero_point, self.grid), scale.to(x.dtype), zero_point


class _IntegerMatrix(nn.Module):
    """A matrix of integers as buffers; 4-bit codes lie two a byte, here as in files."""

    codes: Tensor
    scale: Tensor
    multipliers: Tensor | None

    def __init__(self, integers: Integers) -> None:
        super().__init__()
        self.register_buffer("codes", integers.stored)
        self.register_buffer("scale", integers.scale)
        self.register_buffer("multipliers", integers.multipliers)
        self.bits = integers.bits

    @property
    def integers(self) -> Integers:
        """The matrix, made of the buffers as they are now."""
        return Integers(self.codes, self.scale, self.bits, self.multipliers)


class QuantLinear(_IntegerMatrix):
    """A Linear of integer weights, on integer inputs or (weight-only) on float ones.

    Args:
        integers: the weight [out, in].
        bias: float32 [out], or None.
        input_quantizer: what makes its input codes; None: the input stays in float.
        owner: whether the quantizer is this module's own; else another Linear's.
    """

    bias: Tensor | None

    def __init__(
        self,
        integers: Integers,
        bias: Tensor | None,
        input_quantizer: InputQuantizer | TokenQuantizer | None,
        *,
        owner: bool = True,
    ) -> None:
        super().__init__(integers)
        self.register_buffer("bias", bias)
        if owner and input_quantizer is not None:
            self.input = input_quantizer
        # A tuple keeps a borrowed quantizer out of this module's state dict.
        self._reads = (input_quantizer,)

    @property
    def input_quantizer(self) -> InputQuantizer | TokenQuantizer | None:
        """What makes the input codes, owned or borrowed; None if the input stays in float."""
        return self._reads[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of the scale."""
        weight = self.integers
        if self.input_quantizer is None:
            return nn.functional.linear(x, weight.dequantized(), self.bias)
        codes, scale, zero_point = self.input_quantizer(x)
        return integer_linear(codes, scale, zero_point, weight.wide(), self.scale, self.bias)

    def extra_repr(self) -> str:
        """Shape and bits, as `print(model)` shows them."""
        outputs, inputs = self.integers.shape
        return f"in={inputs}, out={outputs}, bits={self.bits}"


def among(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where `ids` [...] stand in `rows`, and whether they do, bool [..., 1].

    `rows` are ascending, int64. Of the rows 2 and 5 the ids 5 and 3 have the places 1 and 1, and
    only the first stands there.
    """
    place = torch.searchsorted(rows, ids).clamp(max=len(rows) - 1)
    return place, (rows[place] == ids)[..., None]


class QuantEmbedding(_IntegerMatrix):
    """An embedding table of integers with one scale per row.

    `frequent_rows` of a 4-bit table may have 8-bit codes, which replace their 4-bit ones.

    Args:
        integers: the table [rows, dim].
        frequent_rows: int64 [k], ascending; None without any.
        frequent_codes: int8 [k, dim].
    """

    frequent_rows: Tensor | None
    frequent_codes: Tensor | None

    def __init__(
        self,
        integers: Integers,
        frequent_rows: Tensor | None = None,
        frequent_codes: Tensor | None = None,
    ) -> None:
        super().__init__(integers)
        self.register_buffer("frequent_rows", frequent_rows)
        self.register_buffer("frequent_codes", frequent_codes)

    def forward(self, ids: Tensor) -> Tensor:
        """Row numbers [...] -> vectors [..., dim], in the dtype of the scale."""
        lookup = nn.functional.embedding
        codes = lookup(ids, self.codes)
        codes = unpack_nibbles(codes) if self.bits == 4 else codes
        if self.multipliers is not None:
            codes = widened(codes, lookup(ids, self.multipliers))
        if self.frequent_rows is not None and self.frequent_codes is not None:
            place, frequent = among(self.frequent_rows, ids)
            codes = torch.where(frequent, lookup(place, self.frequent_codes), codes)
        return codes.to(self.scale.dtype) * lookup(ids, self.scale)

    def extra_repr(self) -> str:
        """Shape and bits, as `print(model)` shows them."""
        rows, width = self.integers.shape
        return f"rows={rows}, dim={width}, bits={self.bits}"
