"""Rows of a quantized embedding table, added up: the sum of words, types and positions.

A table keeps its 8 or 4 bits in memory. Of a 4-bit table, rows of frequent words have 8-bit codes,
which `frequent` tells the places of.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.integers import Integers
from quantkit.kernels.launch import jit, power_of_two, tl, uses_triton
from quantkit.modules import QuantEmbedding

__all__ = ["Table", "add_rows", "add_rows_reference"]


@dataclass(frozen=True)
class Table:
    """An embedding table on a device.

    codes: floats [rows, width], int8 [rows, width], or uint8 [rows, width / 2], low nibble first.
    scale: float32 [rows]; multipliers: int8 [rows, width / g]; frequent: int32 [rows], the place in
    `frequent_codes` int8 [k, width] or -1. Each None where the table has none.
    """

    codes: Tensor
    width: int
    scale: Tensor | None = None
    multipliers: Tensor | None = None
    frequent: Tensor | None = None
    frequent_codes: Tensor | None = None

    @classmethod
    def of(
        cls, integers: Integers, frequent_rows: Tensor | None, frequent_codes: Tensor | None
    ) -> "Table":
        """From a packed checkpoint's integers."""
        rows, width = integers.shape
        places = None
        if frequent_rows is not None:
            places = torch.full((rows,), -1, dtype=torch.int32, device=frequent_rows.device)
            places[frequent_rows] = torch.arange(
                len(frequent_rows), dtype=torch.int32, device=frequent_rows.device
            )
        scale = integers.scale.reshape(rows)
        return cls(integers.stored, width, scale, integers.multipliers, places, frequent_codes)

    @property
    def bits(self) -> int:
        """4, 8, or 0 for floats."""
        if self.scale is None:
            return 0
        return 4 if self.codes.dtype == torch.uint8 else 8


def add_rows(table: Table, ids: Tensor, before: Tensor | None) -> Tensor:
    """`before` plus the rows `ids` int64 [tokens]: float32 [tokens, width]."""
    if not uses_triton(ids):
        return add_rows_reference(table, ids, before)
    tokens, width = len(ids), table.width
    result = torch.empty((tokens, width), dtype=torch.float32, device=ids.device)

    def pointer(tensor: Tensor | None) -> Tensor:
        return table.codes if tensor is None else tensor

    groups = 1 if table.multipliers is None else table.multipliers.shape[1]
    _add_rows[(tokens,)](
        table.codes,
        ids,
        pointer(before),
        pointer(table.scale),
        pointer(table.multipliers),
        pointer(table.frequent),
        pointer(table.frequent_codes),
        result,
        width,
        groups,
        BITS=table.bits,
        BEFORE=before is not None,
        GROUPED=table.multipliers is not None,
        FREQUENT=table.frequent is not None,
        BLOCK=power_of_two(width),
    )
    return result


def add_rows_reference(table: Table, ids: Tensor, before: Tensor | None) -> Tensor:
    """`add_rows` in plain torch: `modules.QuantEmbedding`."""
    if table.scale is None:
        rows = torch.nn.functional.embedding(ids, table.codes).float()
    else:
        integers = Integers(table.codes, table.scale[:, None], table.bits, table.multipliers)
        frequent = None if table.frequent is None else torch.where(table.frequent >= 0)[0]
        rows = QuantEmbedding(integers, frequent, table.frequent_codes)(ids)
    return rows if before is None else before + rows


@jit
def _add_rows(
    codes,
    ids,
    before,
    scale,
    multipliers,
    frequent,
    frequent_codes,
    result,
    width,
    groups,
    BITS: tl.constexpr,
    BEFORE: tl.constexpr,
    GROUPED: tl.constexpr,
    FREQUENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token per program."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + token)
    column = tl.arange(0, BLOCK)
    inside = column < width
    if BITS == 4:
        byte = tl.load(codes + row * (width // 2) + column // 2, mask=inside, other=0)
        byte = byte.to(tl.int8, bitcast=True)
        code = tl.where(column % 2 == 0, (byte << 4) >> 4, byte >> 4).to(tl.int8)
        if GROUPED:
            place = multipliers + row * groups + column // (width // groups)
            code = code * tl.load(place, mask=inside, other=0)
        if FREQUENT:
            place = tl.load(frequent + row).to(tl.int64)
            wide = frequent_codes + place * width + column
            code = tl.where(place >= 0, tl.load(wide, mask=inside & (place >= 0), other=0), code)
    else:
        code = tl.load(codes + row * width + column, mask=inside, other=0)
    value = code.to(tl.float32)
    if BITS != 0:
        value = value * tl.load(scale + row)
    if BEFORE:
        value = tl.load(before + token * width + column, mask=inside, other=0.0) + value
    tl.store(result + token * width + column, value, mask=inside)
