"""A weight as the products' kernel reads it: 8-bit codes, or 4-bit codes that stay 4 bits.

Along the inputs, 4-bit codes are cut into blocks of 2 h. A byte holds code j of a block's first
half below and code j of its second half above, so that a tile of h bytes is two tiles of h
codes, each multiplied with h neighbouring inputs: nothing has to be interleaved. h is at most
the group, so that a tile has one multiplier per output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.integers import Integers, widened

__all__ = ["LEAST_HALF", "Matrix", "pack_halves", "unpack_halves"]

LEAST_HALF, MOST_HALF = 32, 64  # the tensor cores' int8 product takes 32 inputs at once


@dataclass(frozen=True)
class Matrix:
    """An integer weight on a device.

    codes: int8 [out, in], or uint8 [out, half * blocks]; scale: float32 [out];
    multipliers: int8 [out, in / group], or None; half: 0 with 8 bits; inputs: in.
    """

    codes: Tensor
    scale: Tensor
    multipliers: Tensor | None
    half: int
    inputs: int

    @classmethod
    def of(cls, integers: Integers) -> "Matrix":
        """From a packed checkpoint's integers; groups below 32 are widened to 8 bits."""
        outputs, inputs = integers.shape
        group = inputs if integers.multipliers is None else inputs // integers.multipliers.shape[1]
        scale = integers.scale.reshape(outputs)
        grouped = integers.multipliers is not None
        half = next((h for h in (MOST_HALF, LEAST_HALF) if not grouped or group % h == 0), 0)
        if integers.bits == 8 or half == 0:
            return cls(integers.wide(), scale, None, 0, inputs)
        packed = pack_halves(integers.codes, half)
        return cls(packed, scale, integers.multipliers, half, inputs)

    @property
    def outputs(self) -> int:
        """Rows."""
        return self.codes.shape[0]

    @property
    def group(self) -> int:
        """Inputs that share a multiplier."""
        return self.inputs if self.multipliers is None else self.inputs // self.multipliers.shape[1]

    def wide(self) -> Tensor:
        """Int8 [out, in], multipliers included."""
        if not self.half:
            return self.codes
        return widened(unpack_halves(self.codes, self.half, self.inputs), self.multipliers)

    def sums(self) -> Tensor:
        """Int32 [out]: what a constant 1 on all inputs would give."""
        return self.wide().sum(1, dtype=torch.int32)


def pack_halves(codes: Tensor, half: int) -> Tensor:
    """4-bit codes, int8 [out, in], as uint8 [out, half * blocks]; a last part is filled with 0.

    With half 2 the codes 1 2 3 4 become 0x31 0x42.
    """
    outputs, inputs = codes.shape
    filled = torch.nn.functional.pad(codes, (0, -inputs % (2 * half)))
    parts = filled.view(torch.uint8).reshape(outputs, -1, 2, half)
    return ((parts[:, :, 0] & 0x0F) | (parts[:, :, 1] << 4)).reshape(outputs, -1)


def unpack_halves(packed: Tensor, half: int, inputs: int) -> Tensor:
    """The inverse of `pack_halves`."""
    signed = packed.view(torch.int8).reshape(packed.shape[0], -1, half)
    codes = torch.stack([(signed << 4) >> 4, signed >> 4], dim=2)
    return codes.reshape(packed.shape[0], -1)[:, :inputs].contiguous()
