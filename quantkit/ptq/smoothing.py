"""Smoothing and rotation: one for each weight and all the tensors that it is applied to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from quantkit.algorithms.hadamard import as_read, block_size, rotated
from quantkit.algorithms.outlier_scaling import OutlierScaling
from quantkit.algorithms.smoothing_search import NoSmoothing, Observed, channel_maxima, search
from quantkit.algorithms.smoothquant import SmoothQuant
from quantkit.algorithms.weight_range import absmax_scale
from quantkit.calibration import InputStatistics
from quantkit.encoder import SharedInput
from quantkit.errors import CheckpointError
from quantkit.numerics import asymmetric_grid, fake_quantize, symmetric_grid
from quantkit.placement import Plan
from quantkit.recipe import Recipe

__all__ = ["Smoothing", "folds", "linear_of", "rotations_of", "smooth"]


# Rounding with a Hessian leaves about a sixth of nearest's squared error.
NEAREST_SHARE = 0.4


@dataclass(frozen=True)
class Smoothing:
    """The smoothing and rotation of one weight and of all tensors that it is applied to."""

    setting: float | None = None  # alpha, or share of the range; None without smoothing
    vector: Tensor | None = None  # s [in]: inputs are divided by it, weights multiplied
    multiplier: Tensor | None = None  # 1 / s [in], one tensor for all calls of the weight
    folded: bool = False  # the division moves into the producer's scales
    rotation: int | None = None  # block of H, which acts after the division; None without

    def inputs(self, rows: Tensor) -> Tensor:
        """Inputs [n, in] of the float model as they are put on the grid."""
        return as_read(rows, self.multiplier, self.rotation)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight [out, in] whose product with such inputs is the float model's."""
        return as_read(weight, self.vector, self.rotation)


def smooth(
    model: nn.Module,
    calls: Sequence[tuple[SharedInput, ...]],
    statistics: Mapping[SharedInput, InputStatistics],
    plan: Plan,
    recipe: Recipe,
    *,
    fold: bool = True,
) -> dict[SharedInput, Smoothing]:
    """One smoothing vector for all inputs of the same weights.

    Inputs that stay in float have no range to narrow, and are neither smoothed nor rotated. A
    folded division comes before the rotation like any other, so both go together. Without `fold`
    every input is divided where it is read, and no Linear's outputs change for a later one's sake.
    """
    found: dict[SharedInput, Smoothing] = {}
    for together in calls:
        if not isinstance(recipe.smoothing, NoSmoothing) and recipe.activations.bits < 16:
            smoothing = _searched(model, together, statistics, plan, recipe, recipe.smoothing)
            smoothing = replace(smoothing, folded=smoothing.folded and fold)
        else:
            smoothing = Smoothing(rotation=_rotation(model, together, recipe))
        found |= dict.fromkeys(together, smoothing)
    return found


def _searched(
    model: nn.Module,
    together: Sequence[SharedInput],
    statistics: Mapping[SharedInput, InputStatistics],
    plan: Plan,
    recipe: Recipe,
    slot: SmoothQuant | OutlierScaling,
) -> Smoothing:
    names = together[0].linears
    found = [statistics[shared] for shared in together]
    seen = [Observed(each.rows, each.low, each.high) for each in found]
    weight = torch.cat([linear_of(model, name).weight.detach().float() for name in names])
    rotation = _rotation(model, together, recipe)
    choice = search(
        seen,
        weight,
        slot.vectors(channel_maxima(seen), weight.abs().amax(0)),
        asymmetric_grid(recipe.activations.bits),
        partial(_coarsened, bits=plan.bits(names[0]) or 8, recipe=recipe),
        None if rotation is None else partial(rotated, block=rotation),
    )
    producer = together[0].producer
    folded = producer is not None and plan.quantized(producer)
    return Smoothing(choice.setting, choice.vector, 1.0 / choice.vector, folded, rotation)


def _rotation(model: nn.Module, together: Sequence[SharedInput], recipe: Recipe) -> int | None:
    """The block that divides the inputs' width; None where nothing is to be turned."""
    block = block_size(linear_of(model, together[0].linears[0]).in_features)
    return block if recipe.activations.rotation is not None and block > 1 else None


def _coarsened(weight: Tensor, bits: int, recipe: Recipe) -> Tensor:
    """A weight [out, in] about as its rounding will leave it, without the time that takes."""
    slot, grid = recipe.weights, symmetric_grid(bits)
    grouped = slot.per == "group" and bits < 8
    parts = weight.view(-1, slot.group) if grouped else weight
    zero = torch.zeros((), dtype=grid.dtype)
    nearest = fake_quantize(parts, absmax_scale(parts, grid), zero, grid).view_as(weight)
    share = NEAREST_SHARE if recipe.rounding.needs_hessian else 1.0
    return weight + share * (nearest - weight)


def folds(smoothing: Mapping[SharedInput, Smoothing]) -> dict[str, Tensor]:
    """Factor [out] of the outputs of each Linear that does the smoothing of a later input."""
    return {
        shared.producer: each.multiplier
        for shared, each in smoothing.items()
        if each.folded and shared.producer is not None and each.multiplier is not None
    }


def rotations_of(smoothing: Mapping[SharedInput, Smoothing]) -> dict[SharedInput, int]:
    """The blocks of those inputs that are rotated."""
    return {s: each.rotation for s, each in smoothing.items() if each.rotation is not None}


def linear_of(model: nn.Module, name: str) -> nn.Linear:
    """The float Linear of a name.

    Raises:
        CheckpointError: it is something else.
    """
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise CheckpointError(
            f"{name} is a {type(module).__name__}, not a Linear. Is the model quantized already?"
        )
    return module
