"""Smoothing vectors: one for each weight and all the tensors that it is applied to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantkit.algorithms import smoothquant
from quantkit.algorithms.smoothquant import Observed, SmoothQuant
from quantkit.calibration import InputStatistics
from quantkit.encoder import SharedInput
from quantkit.errors import CheckpointError
from quantkit.numerics import asymmetric_grid, symmetric_grid
from quantkit.placement import Plan
from quantkit.recipe import Recipe

__all__ = ["Smoothing", "folds", "linear_of", "smooth"]


@dataclass(frozen=True)
class Smoothing:
    """The smoothing of one weight and of all tensors that it is applied to."""

    alpha: float | None = None  # None without smoothing
    vector: Tensor | None = None  # s [in]: inputs are divided by it, weights multiplied
    folded: bool = False  # the division moves into the producer's scales

    @property
    def multiplier(self) -> Tensor | None:
        """1 / s [in], of the inputs."""
        return None if self.vector is None else 1.0 / self.vector


def smooth(
    model: nn.Module,
    calls: Sequence[tuple[SharedInput, ...]],
    statistics: Mapping[SharedInput, InputStatistics],
    plan: Plan,
    recipe: Recipe,
) -> dict[SharedInput, Smoothing]:
    """One smoothing vector for all inputs of the same weights.

    Inputs that stay in float have no range to narrow, and are not smoothed.
    """
    found: dict[SharedInput, Smoothing] = {}
    for together in calls:
        if isinstance(recipe.smoothing, SmoothQuant) and recipe.activations.bits < 16:
            smoothing = _searched(model, together, statistics, plan, recipe, recipe.smoothing)
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
    slot: SmoothQuant,
) -> Smoothing:
    seen = [statistics[shared] for shared in together]
    choice = smoothquant.search(
        [Observed(each.rows, each.low, each.high) for each in seen],
        torch.cat([linear_of(model, name).weight.detach().float() for name in together[0].linears]),
        slot.alphas,
        asymmetric_grid(recipe.activations.bits),
        # Also for 4-bit weights: their scales adapt to every group, so that a per-channel
        # 4-bit grid would see a harm in smoothing that is not there.
        symmetric_grid(8),
    )
    producer = together[0].producer
    folded = producer is not None and plan.quantized(producer)
    return Smoothing(choice.alpha, choice.vector, folded)


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
