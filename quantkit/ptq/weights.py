"""Integers of the Linears: scales, codes, and the bias that goes with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantkit.algorithms.weight_range import (
    absmax_scale,
    least_squares_scale,
    tensor_scale,
    two_level_scales,
)
from quantkit.calibration import Batch, InputStatistics
from quantkit.encoder import SharedInput
from quantkit.errors import RecipeError
from quantkit.integers import Integers
from quantkit.modules import QuantLinear
from quantkit.moments import InputMoments, collect_moments, in_turns
from quantkit.numerics import symmetric_grid
from quantkit.placement import Plan
from quantkit.ptq.inputs import Reader
from quantkit.ptq.resume import LayerStore
from quantkit.ptq.smoothing import Smoothing, folds, linear_of
from quantkit.recipe import Recipe

__all__ = ["Progress", "WeightMaker", "rounded"]

Progress = Callable[[str, int, int], None]  # what is done now, how many are done, of how many

# Share of the model's bytes that the Hessians of one turn may take.
HESSIAN_SHARE = 0.25


@dataclass(frozen=True)
class _Weight:
    """What a Linear becomes."""

    integers: Integers
    bias: Tensor | None


@dataclass(frozen=True)
class WeightMaker:
    """Makes the quantized Linears of a model, one shared input after the other."""

    model: nn.Module
    plan: Plan
    recipe: Recipe
    statistics: Mapping[SharedInput, InputStatistics]
    smoothing: Mapping[SharedInput, Smoothing]
    readers: Mapping[SharedInput, Reader]
    batches: Sequence[Batch]
    store: LayerStore
    progress: Progress

    def modules(self, calls: Sequence[tuple[SharedInput, ...]]) -> dict[str, nn.Module]:
        """A QuantLinear for every Linear of `calls`; those of the same weights share tensors."""
        factors = folds(self.smoothing)
        modules: dict[str, nn.Module] = {}
        for done, (together, weights) in enumerate(self._weights(calls)):
            for at, weight in enumerate(weights):
                factor = factors.get(together[0].linears[at])
                integers, bias = weight.integers, weight.bias
                # A factor per output channel leaves the codes: only scale and bias move.
                if factor is not None:
                    integers = integers.scaled(factor)
                    bias = None if bias is None else bias * factor
                for shared in together:
                    reader = self.readers[shared]
                    modules[shared.linears[at]] = QuantLinear(
                        integers, bias, reader.quantizer, owner=at == 0
                    )
            self.progress("rounding", done + 1, len(calls))
        return modules

    def _weights(
        self, calls: Sequence[tuple[SharedInput, ...]]
    ) -> Iterator[tuple[tuple[SharedInput, ...], list[_Weight]]]:
        """The integers of every weight, in order; finished ones come from the store."""
        missing = []
        for together in calls:
            found = self.store.get(together[0].linears[0])
            if found is None:
                missing.append(together)
            else:
                yield together, _restored(found, self._bits(together), len(together[0].linears))
        widths = {shared: len(self.statistics[shared].low) for shared in self.statistics}
        size = sum(4 * parameter.numel() for parameter in self.model.parameters())
        needs = self.recipe.rounding.needs_hessian or self.recipe.bias_correction
        turns = in_turns(missing, widths, int(HESSIAN_SHARE * size)) if needs else iter([missing])
        for turn in turns:
            moments = self._moments(turn) if needs else {}
            for together in turn:
                weights = self._made(together, [moments.pop(s) for s in together if s in moments])
                self.store.put(together[0].linears[0], _storable(weights))
                yield together, weights

    def _moments(self, turn: Sequence[tuple[SharedInput, ...]]) -> dict[SharedInput, InputMoments]:
        inputs = [shared for together in turn for shared in together]
        self.progress("reading second moments", 0, len(inputs))
        return collect_moments(
            self.model,
            inputs,
            {shared: self.smoothing[shared].multiplier for shared in inputs},
            {shared: self.readers[shared].quantizer for shared in inputs},
            self.batches,
        )

    def _made(
        self, together: tuple[SharedInput, ...], moments: Sequence[InputMoments]
    ) -> list[_Weight]:
        """The Linears of one weight; several calls of it count alike."""
        hessian = _mean([each.hessian for each in moments])
        vector = self.smoothing[together[0]].vector
        importance = self._importance(together) if hessian is None else hessian.diagonal()
        made = []
        for name in together[0].linears:
            linear = linear_of(self.model, name)
            weight = linear.weight.detach().float()
            weight = weight if vector is None else weight * vector
            integers = rounded(name, weight, self._bits(together), self.recipe, importance, hessian)
            bias = None if linear.bias is None else linear.bias.detach().float().clone()
            if self.recipe.bias_correction:
                means = _mean([each.mean for each in moments])
                quantized = _mean([each.quantized_mean for each in moments])
                if means is not None and quantized is not None:
                    from quantkit.algorithms.bias_correction import corrected_bias

                    after = integers.dequantized()
                    bias = corrected_bias(bias, weight, after, means, quantized)
            made.append(_Weight(integers, bias))
        return made

    def _bits(self, together: Sequence[SharedInput]) -> int:
        bits = self.plan.bits(together[0].linears[0])
        if bits is None:
            raise ValueError(f"{together[0].linears[0]} is to stay in float")
        return bits

    def _importance(self, together: Sequence[SharedInput]) -> Tensor:
        """Mean square of each smoothed input channel [in], over sampled rows."""
        squares = torch.stack([self.statistics[s].rows.square().mean(0) for s in together])
        multiplier = self.smoothing[together[0]].multiplier
        mean = squares.mean(0)
        return mean if multiplier is None else mean * multiplier.square()


def rounded(
    name: str,
    weight: Tensor,
    bits: int,
    recipe: Recipe,
    importance: Tensor,
    hessian: Tensor | None,
) -> Integers:
    """Scales, then codes, of one weight [out, in].

    Raises:
        RecipeError: its width is no multiple of the recipe's group.
    """
    slot, grid = recipe.weights, symmetric_grid(bits)
    if slot.per == "group" and bits == 4:
        check_group(name, weight.shape[1], slot.group, "weights")
        scale, multipliers = two_level_scales(weight, slot.group, grid, importance)
        wide = (scale * multipliers).repeat_interleave(slot.group, dim=1)
        codes = recipe.rounding.round(weight, wide, grid, hessian)
        return Integers.of(codes, scale, bits, multipliers)
    if slot.per == "tensor":
        scale = tensor_scale(weight, grid)
    elif slot.range == "mse":
        scale = least_squares_scale(weight, grid, importance)
    else:
        scale = absmax_scale(weight, grid)
    return Integers.of(recipe.rounding.round(weight, scale, grid, hessian), scale, bits)


def check_group(name: str, width: int, group: int, slot: str) -> None:
    """Refuse a group that does not divide a matrix's width.

    Raises:
        RecipeError: naming sizes that do.
    """
    if width % group:
        fits = [size for size in range(8, 129, 2) if width % size == 0]
        raise RecipeError(
            f"{slot}.group is {group}, and {name} has {width} columns, which groups of {group} do "
            f"not divide. Sizes that fit: {', '.join(map(str, fits)) or 'none'}; or write "
            f"`per: {'channel' if slot == 'weights' else 'row'}`."
        )


def _mean(tensors: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(tensors)).mean(0) if tensors else None


def _storable(weights: Sequence[_Weight]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for at, weight in enumerate(weights):
        parts = {
            "stored": weight.integers.stored,
            "scale": weight.integers.scale,
            "multipliers": weight.integers.multipliers,
            "bias": weight.bias,
        }
        tensors |= {f"{at}.{part}": value for part, value in parts.items() if value is not None}
    return tensors


def _restored(tensors: Mapping[str, Tensor], bits: int, count: int) -> list[_Weight]:
    return [
        _Weight(
            Integers(
                tensors[f"{at}.stored"],
                tensors[f"{at}.scale"],
                bits,
                tensors.get(f"{at}.multipliers"),
            ),
            tensors.get(f"{at}.bias"),
        )
        for at in range(count)
    ]
