"""From a float model to one whose every tensor lies on a grid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.calibration import Batch, batches_of
from quantkit.encoder import describe, unroll
from quantkit.errors import RecipeError
from quantkit.numerics import asymmetric_grid
from quantkit.placement import swap
from quantkit.ptq import quantize
from quantkit.ptq.inputs import CLIPPED_TEXTS_WARNING, Calibrated, calibrated
from quantkit.recipe import Activations, Recipe
from quantkit.simulation.modules import ATTENTION, FakeQuantizer
from quantkit.simulation.ranges import Watched, watch
from quantkit.simulation.taps import Tap, norms_of, place_taps

__all__ = ["Simulated", "TensorRange", "simulate"]


@dataclass(frozen=True)
class TensorRange:
    """What was chosen for one tensor of the forward pass."""

    tensor: str  # name of its FakeQuantizer in the model
    low: tuple[float, ...]  # one number per tensor, or one for each group of channels
    high: tuple[float, ...]
    clipped_texts: float  # share of calibration texts with a value outside; 0 for groups


@dataclass(frozen=True)
class Simulated:
    """A model on grids, in torch only."""

    model: PreTrainedModel
    notes: tuple[str, ...]
    ranges: tuple[TensorRange, ...]  # in the order of computation


def simulate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    recipe: Recipe,
    reachable_rows: int | None = None,
    word_counts: Tensor | None = None,
) -> Simulated:
    """Quantize a float encoder so that every tensor of its forward pass lies on a grid.

    On grids are: the sum of the embeddings; outputs of Linears (query, key, value, what enters
    GELU, what is added to the residual, the head's, the logits); attention's scores, its
    probabilities (always unsigned) and its context; GELU's output; residual sums and the
    outputs of LayerNorms, which may have groups of channels (`activations.groups`; per-embedding-
    group quantization, Bondarenko et al. 2021, section 4). Weights and tables are the integers
    that `quantize` makes. Ranges are those of the model with these weights and float
    activations. A BERT-base classifier has 173 such tensors, against 49 with `scope: inputs`.

    Args:
        model: as `quantize` takes it; left as it is.
        batches: calibration texts; padding is ignored through `attention_mask`.
        recipe: with `activations.scope: all`. With smoothing, a Linear's input is multiplied and
            quantized once more, except where nothing else reads it.
        reachable_rows: word embedding rows to keep; None keeps all.
        word_counts: int64 [rows], for 4-bit tables; see `quantize`.

    Raises:
        RecipeError: another scope, or groups that do not divide the channels.
        CheckpointError: values that are not finite, or an unknown family.
        DataError: no calibration batch, or token ids beyond `reachable_rows`.
    """
    slot, texts = recipe.activations, batches_of(batches)
    if slot.scope != "all":
        raise RecipeError(
            f"activations.scope is {slot.scope!r}; a simulation is of `scope: all`. `quantize` "
            f"makes a model whose Linears alone read integers."
        )
    _check_groups(model, slot.groups)
    quantized = quantize(
        model,
        texts,
        recipe=_inputs_only(recipe),
        reachable_rows=reachable_rows,
        word_counts=word_counts,
    )
    result = quantized.model
    encoder = describe(result)
    taps = place_taps(result, encoder)
    result.set_attn_implementation(ATTENTION)
    watched = watch(result, encoder.arguments, taps, texts, slot)
    found = {tap: _calibrated(tap, watched[tap], slot) for tap in taps}
    swap(result, {tap.name: _quantizer(found[tap], watched[tap].order, slot) for tap in taps})
    ranges = tuple(
        TensorRange(tap.name, tuple(c.low.tolist()), tuple(c.high.tolist()), c.clipped_texts)
        for tap, c in found.items()
    )
    return Simulated(result, (*quantized.notes, *_notes(ranges, recipe)), ranges)


def _check_groups(model: PreTrainedModel, groups: int | None) -> None:
    """Refuse a number of groups that does not divide the width of every LayerNorm."""
    if groups is None:
        return
    unrolled = unroll(model)
    for name in norms_of(describe(unrolled)):
        norm: Any = unrolled.get_submodule(name)
        width = len(norm.weight)
        if width % groups:
            fits = [number for number in range(2, 33) if width % number == 0]
            raise RecipeError(
                f"activations.groups is {groups}, and {name} has {width} channels, which cannot "
                f"be divided into as many equal groups. Numbers that fit: "
                f"{', '.join(map(str, fits)) or 'none'}."
            )


def _inputs_only(recipe: Recipe) -> Recipe:
    """The deployment preset of a recipe: its weights, tables and smoothing are the same."""
    slot = replace(recipe.activations, scope="inputs", groups=None, ordered=False)
    return replace(recipe, activations=slot)


def _calibrated(tap: Tap, watched: Watched, slot: Activations) -> Calibrated:
    return calibrated(watched.observed, slot, symmetric=slot.symmetric and not tap.softmax)


def _quantizer(found: Calibrated, order: Tensor | None, slot: Activations) -> FakeQuantizer:
    """One scale, or that of its group for every channel."""
    scale, zero_point = found.scale, found.zero_point
    if order is not None:
        groups = torch.arange(len(scale)).repeat_interleave(len(order) // len(scale))
        group_of = torch.empty_like(order)
        group_of[order] = groups
        scale, zero_point = scale[group_of], zero_point[group_of]
    return FakeQuantizer(scale, zero_point, asymmetric_grid(slot.bits))


def _notes(ranges: Sequence[TensorRange], recipe: Recipe) -> list[str]:
    """That this is a simulation, and where a calibrator clips more texts than a few."""
    slot = recipe.activations
    notes = [
        f"Full quantization, simulated in torch: {len(ranges)} tensors of the forward pass lie on "
        f"grids of {slot.bits} bits."
    ]
    clipped = [each for each in ranges if each.clipped_texts > CLIPPED_TEXTS_WARNING]
    if clipped:
        worst = max(clipped, key=lambda each: each.clipped_texts)
        notes.append(
            f"The {slot.calibrator.name} calibrator clips a value in more than 1 % of the "
            f"calibration texts at {len(clipped)} of {len(ranges)} tensors (most: "
            f"{worst.clipped_texts:.0%} at {worst.tensor})."
        )
    return notes
