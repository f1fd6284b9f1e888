"""Quantizers of the tensors that Linears read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from quantkit.calibration import (
    Batch,
    InputStatistics,
    collect_observed,
    extremes,
    rotated_extremes,
)
from quantkit.calibrators import Observed
from quantkit.encoder import SharedInput
from quantkit.modules import InputQuantizer, TokenQuantizer
from quantkit.numerics import asymmetric_grid, static_grid, symmetric_grid
from quantkit.ptq.smoothing import Smoothing, linear_of, rotations_of
from quantkit.recipe import Activations, Recipe

__all__ = [
    "Calibrated",
    "InputDecision",
    "Reader",
    "calibrated",
    "clipping_notes",
    "input_readers",
    "rotation_notes",
]

# Above this share of texts with a clipped token, a calibrator is suspected of cutting off
# activations that the model needs.
CLIPPED_TEXTS_WARNING = 0.01


@dataclass(frozen=True)
class InputDecision:
    """What was chosen for one tensor that Linears read, and what it cost."""

    linears: tuple[str, ...]
    bits: int  # of the weights
    smoothing: float | None  # SmoothQuant's alpha, or the share of the range; None without
    folded: bool  # the smoothing vector moved into the producer
    low: float | None  # range of the grid, as it is read; None where it is each token's own
    high: float | None
    clipped_texts: float  # share of calibration texts with a value outside the range
    error: float  # mean relative squared error of the product, weights and inputs quantized
    rotation: int | None = None  # block of the Hadamard rotation; None without


@dataclass(frozen=True)
class Reader:
    """How one tensor is read: its quantizer (None: as floats), range and clipped texts."""

    quantizer: InputQuantizer | TokenQuantizer | None
    low: float | None = None
    high: float | None = None
    clipped_texts: float = 0.0


def input_readers(
    model: nn.Module,
    statistics: Mapping[SharedInput, InputStatistics],
    smoothing: Mapping[SharedInput, Smoothing],
    batches: Sequence[Batch],
    recipe: Recipe,
) -> dict[SharedInput, Reader]:
    """A reader of every shared input; static ranges may take a pass over the batches."""
    slot = recipe.activations
    multipliers = {shared: smoothing[shared].multiplier for shared in statistics}
    # What the producer has done already need not be done again.
    left = {
        shared: None if smoothing[shared].folded else multipliers[shared] for shared in statistics
    }
    if slot.bits == 16:
        return {shared: Reader(None) for shared in statistics}
    if slot.per == "token":
        return {
            shared: Reader(TokenQuantizer(left[shared], slot.bits, smoothing[shared].rotation))
            for shared in statistics
        }
    rotations = rotations_of(smoothing)
    turned = rotated_extremes(model, multipliers, rotations, batches)
    bounds = {
        shared: turned.get(shared) or extremes(statistics[shared], multipliers[shared])
        for shared in statistics
    }
    observed = collect_observed(model, bounds, multipliers, batches, slot.calibrator, rotations)
    readers = {}
    for shared, seen in observed.items():
        found = calibrated(seen, slot, symmetric=slot.symmetric)
        quantizer = InputQuantizer(
            found.scale[0],
            found.zero_point[0],
            left[shared],
            slot.bits,
            smoothing[shared].rotation,
        )
        low, high = float(found.low), float(found.high)
        readers[shared] = Reader(quantizer, low, high, found.clipped_texts)
    return readers


@dataclass(frozen=True)
class Calibrated:
    """The chosen ranges of a tensor and what follows from them; each Tensor is [n]."""

    low: Tensor
    high: Tensor
    scale: Tensor  # float32
    zero_point: Tensor  # uint8
    clipped_texts: float  # share of texts with a value outside, where texts were counted


def calibrated(seen: Observed, slot: Activations, *, symmetric: bool) -> Calibrated:
    """The ranges that the slot's calibrator chooses, and their unsigned grids.

    A symmetric grid is the unsigned one around its `numerics.centre`, 128 of 8 bits.
    """
    unsigned, signed = asymmetric_grid(slot.bits), symmetric_grid(slot.bits)
    low, high = slot.calibrator.range(seen, signed if symmetric else unsigned)
    scale, zero_point = static_grid(low, high, slot.bits, symmetric=symmetric)
    counted = seen.histogram is not None and len(low) == 1
    clipped = seen.counted().clipped_texts(low, high) if counted else 0.0
    return Calibrated(low, high, scale, zero_point, clipped)


def clipping_notes(decisions: Sequence[InputDecision], recipe: Recipe) -> list[str]:
    """A warning where a calibrator clips more texts than a few."""
    clipped = [d for d in decisions if d.clipped_texts > CLIPPED_TEXTS_WARNING]
    if not clipped:
        return []
    worst = max(clipped, key=lambda decision: decision.clipped_texts)
    return [
        f"The {recipe.activations.calibrator.name} calibrator clips a token in more than 1 % of "
        f"the calibration texts at {len(clipped)} of {len(decisions)} inputs (most: "
        f"{worst.clipped_texts:.0%} at {worst.linears[0]}). Massive activations carry meaning in "
        f"BERT: `calibrator: {{name: minmax}}` keeps them."
    ]


def rotation_notes(model: nn.Module, decisions: Sequence[InputDecision]) -> list[str]:
    """What the rotations of a model's inputs cost, beside the products that read them."""
    turned = [decision for decision in decisions if decision.rotation]
    if not turned:
        return []
    weights = [linear_of(model, name).weight for d in decisions for name in d.linears]
    widths = [linear_of(model, d.linears[0]).in_features * (d.rotation or 0) for d in turned]
    products = sum(weight.numel() for weight in weights)
    return [
        f"{len(turned)} inputs are rotated by a Hadamard matrix where they are read: "
        f"{sum(widths):,} multiplications in float beside {products:,} in integers, if every "
        f"Linear reads one token."
    ]
