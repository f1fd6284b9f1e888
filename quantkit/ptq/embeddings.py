"""Integers of the embedding tables."""

from typing import Any

import torch
from torch import Tensor, nn

from quantkit import numerics
from quantkit.algorithms.weight_range import absmax_scale, two_level_scales
from quantkit.encoder import EncoderPlan
from quantkit.integers import Integers, two_level_steps
from quantkit.modules import QuantEmbedding
from quantkit.numerics import symmetric_grid
from quantkit.placement import Plan
from quantkit.recipe import Recipe

__all__ = ["embeddings"]

ROWS = 2048  # of a table that are rounded at a time
# Of a table, at most, with 8-bit codes beside its 4-bit ones: from a half on it would be no smaller
# than a table of 8 bits.
FREQUENT_SHARE = 0.25


def embeddings(
    model: nn.Module,
    encoder: EncoderPlan,
    plan: Plan,
    recipe: Recipe,
    reachable: int | None,
    counts: Tensor,
) -> tuple[dict[str, nn.Module], int]:
    """A QuantEmbedding for every planned table, and the number of word rows removed.

    Args:
        model: float.
        encoder: its plan.
        plan: bits of every table.
        recipe: the slot `embeddings` is read.
        reachable: word rows to keep; None keeps all.
        counts: how often each word row is read [rows], in texts like those to come.
    """
    modules: dict[str, nn.Module] = {}
    trimmed = 0
    for name in encoder.embedding.tables:
        bits = plan.bits(name)
        if bits is None:
            continue
        module: Any = model.get_submodule(name)
        table: Tensor = module.weight.detach().float()
        words = name == encoder.embedding.words
        if words and recipe.embeddings.trim and reachable is not None:
            trimmed = max(0, len(table) - reachable)
            table = table[: len(table) - trimmed]
        if bits == 8:
            modules[name] = QuantEmbedding(_rows(table, 8))
        else:
            modules[name] = _four_bits(table, recipe, counts[: len(table)])
    return modules, trimmed


def _rows(table: Tensor, bits: int) -> Integers:
    """One scale per row, which covers it whole; nearest codes."""
    grid = symmetric_grid(bits)
    scale = absmax_scale(table, grid)
    return Integers.of(_nearest(table, scale, bits), scale, bits)


def _nearest(table: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest codes, a part of the rows at a time: tables are the largest tensors of a model."""
    grid = symmetric_grid(bits)
    zero = torch.zeros((), dtype=grid.dtype)
    parts = zip(torch.split(table, ROWS), torch.split(scale, ROWS), strict=True)
    return torch.cat([numerics.quantize(rows, scales, zero, grid) for rows, scales in parts])


def _four_bits(table: Tensor, recipe: Recipe, counts: Tensor) -> QuantEmbedding:
    """Two levels, or one scale per row; the most frequent rows, a quarter at most, at 8 bits."""
    slot = recipe.embeddings
    if slot.per == "group":
        scale, multipliers = two_level_scales(table, slot.group, symmetric_grid(4), None)
        wide = two_level_steps(scale, multipliers, table.shape[1])
        integers = Integers.of(_nearest(table, wide, 4), scale, 4, multipliers)
    else:
        integers = _rows(table, 4)
    count = min(slot.frequent, int((counts > 0).sum()), int(FREQUENT_SHARE * len(table)))
    if not count:
        return QuantEmbedding(integers)
    rows = counts.topk(count).indices.sort().values
    exact = _rows(table[rows], 8)
    scale = integers.scale.clone()
    scale[rows] = exact.scale
    return QuantEmbedding(
        Integers(integers.stored, scale, 4, integers.multipliers), rows, exact.codes
    )
