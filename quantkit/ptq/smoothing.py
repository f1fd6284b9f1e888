"""Smoothing vectors: one for each weight and all the tensors that it is applied to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

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

__all__ = ["Smoothing", "folds", "linear_of", "smooth"]


# Rounding with a Hessian leaves about a sixth of nearest's squared error.
NEAREST_SHARE = 0.4


@dataclass(frozen=True)
class Smoothing:
    """The smoothing of one weight and of all tensors that it is applied to."""

    setting: float | None = None  # alpha, or share of the range; None without smoothing
    vector: Tensor | None = None  # s [in]: inputs are divided by it, weights multiplied
    multiplier: Tensor | None = None  # 1 / s [in], one tensor for all calls of the weight
    folded: bool = False  # the division moves into the producer's scales


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

    Inputs that stay in float have no range to narrow, and are not smoothed. Without `fold` every
    input is divided where it is read, and no Linear's outputs change for a later one's sake.
    """
    found: dict[SharedInput, Smoothing] = {}
    for together in calls:
        if not isinstance(recipe.smoothing, NoSmoothing) and recipe.activations.bits < 16:
            smoothing = _searched(model, together, statistics, plan, recipe, recipe.smoothing)
            smoothing = replace(smoothing, folded=smoothing.folded and fold)
        else:
            smoothing = Smoothing()
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
    choice = search(
        seen,
        weight,
        slot.vectors(channel_maxima(seen), weight.abs().amax(0)),
        asymmetric_grid(recipe.activations.bits),
        partial(_coarsened, bits=plan.bits(names[0]) or 8, recipe=recipe),
    )
    producer = together[0].producer
    folded = producer is not None and plan.quantized(producer)
    return Smoothing(choice.setting, choice.vector, 1.0 / choice.vector, folded)


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
