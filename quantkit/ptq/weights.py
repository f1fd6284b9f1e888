"""Integers of the Linears: scales, codes, and the bias that goes with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantkit.algorithms.bias_correction import corrected_bias
from quantkit.algorithms.compensation import compensated
from quantkit.algorithms.weight_range import (
    absmax_scale,
    least_squares_scale,
    tensor_scale,
    two_level_scales,
)
from quantkit.calibration import Batch, InputStatistics
from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.integers import Integers, two_level_steps
from quantkit.memory import return_freed_memory
from quantkit.modules import QuantLinear
from quantkit.moments import InputMoments, MomentCollector, in_turns, stride_for
from quantkit.placement import Plan, swap
from quantkit.ptq.inputs import Reader
from quantkit.ptq.resume import LayerStore
from quantkit.ptq.smoothing import Smoothing, folds, linear_of, rotations_of
from quantkit.recipe import Recipe

__all__ = ["Progress", "WeightMaker", "rounded"]

Progress = Callable[[str, int, int], None]  # what is done now, how many are done, of how many

# Share of the model's bytes that the Hessians of one turn may take: of BERT-base's, a layer's.
HESSIAN_SHARE = 0.1
# Tokens that the Hessians of 8-bit weights are of, at least, where there are more of them. Half of
# a calibration's time would go into the others.
EIGHT_BIT_TOKENS = 8192


@dataclass(frozen=True)
class _Weight:
    """What a Linear becomes."""

    integers: Integers
    bias: Tensor | None


@dataclass(frozen=True)
class WeightMaker:
    """Makes the quantized Linears of a model, one weight after the other.

    `working` is the model that they are put into: with compensation the layers to come are
    fitted to what it computes so far.
    """

    model: nn.Module
    working: nn.Module
    encoder: EncoderPlan
    plan: Plan
    recipe: Recipe
    statistics: Mapping[SharedInput, InputStatistics]
    smoothing: Mapping[SharedInput, Smoothing]
    readers: Mapping[SharedInput, Reader]
    batches: Sequence[Batch]
    store: LayerStore
    progress: Progress

    def fill(self, calls: Sequence[tuple[SharedInput, ...]]) -> None:
        """Put a QuantLinear in the place of every Linear; those of the same weights share."""
        factors = folds(self.smoothing)
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
                    module = QuantLinear(integers, bias, reader.quantizer, owner=at == 0)
                    swap(self.working, {shared.linears[at]: module})
            self.progress("rounding", done + 1, len(calls))

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
        turns, collector = list(self._turns(missing)), self._collector()
        for at, turn in enumerate(turns):
            following = turns[at + 1][0][0] if at + 1 < len(turns) else None
            moments = self._moments(collector, turn, following)
            return_freed_memory()
            made = []
            for together in turn:
                weights = self._made(together, [moments.pop(s) for s in together if s in moments])
                self.store.put(together[0].linears[0], _storable(weights))
                made.append((together, weights))
                return_freed_memory()
            # Not earlier: the moments of a turn are those of Linears that are still float.
            yield from made

    def _turns(
        self, calls: Sequence[tuple[SharedInput, ...]]
    ) -> Iterator[Sequence[tuple[SharedInput, ...]]]:
        """Weights whose moments are read in one pass."""
        if self.recipe.compensation is not None:
            # One by one: a weight must not make up for what one before it in the same layer
            # will have made up for. Layer by layer, the logits lost 3 dB instead of gaining 2.
            yield from ([together] for together in calls)
        elif self._needs_moments:
            size = sum(4 * parameter.numel() for parameter in self.model.parameters())
            yield from in_turns(calls, self._widths, int(HESSIAN_SHARE * size))
        else:
            yield calls

    @property
    def _needs_means(self) -> bool:
        return self.recipe.bias_correction or self.recipe.compensation is not None

    @property
    def _needs_moments(self) -> bool:
        return self.recipe.rounding.needs_hessian or self._needs_means

    @property
    def _widths(self) -> dict[SharedInput, int]:
        return {shared: len(seen.low) for shared, seen in self.statistics.items()}

    def _collector(self) -> MomentCollector:
        return MomentCollector(
            self.model,
            self.encoder,
            {shared: each.multiplier for shared, each in self.smoothing.items()},
            rotations_of(self.smoothing),
            {shared for shared, each in self.smoothing.items() if each.folded},
            {s: each.quantizer for s, each in self.readers.items() if self._needs_means},
            self.batches,
            self._strides(),
        )

    def _strides(self) -> dict[SharedInput, int]:
        """All texts are read, but where moments only steer 8-bit rounding."""
        if self._needs_means:
            return {}
        stride = stride_for(self.batches, EIGHT_BIT_TOKENS)
        eight = {shared: self.plan.bits(shared.linears[0]) == 8 for shared in self.statistics}
        return {shared: stride if few else 1 for shared, few in eight.items()}

    def _moments(
        self,
        collector: MomentCollector,
        turn: Sequence[tuple[SharedInput, ...]],
        following: SharedInput | None,
    ) -> dict[SharedInput, InputMoments]:
        inputs = [shared for together in turn for shared in together]
        if not self._needs_moments:
            return {}
        if self.recipe.compensation is not None:
            return collector.collect_pairs(inputs, self._widths, self.working)
        return collector.collect(inputs, self._widths, following)

    def _made(
        self, together: tuple[SharedInput, ...], moments: Sequence[InputMoments]
    ) -> list[_Weight]:
        """The Linears of one weight; several calls of it count alike."""
        hessian = _mean([each.hessian for each in moments])
        importance = self._importance(together) if hessian is None else hessian.diagonal()
        made = []
        for name in together[0].linears:
            linear = linear_of(self.model, name)
            weight = self.smoothing[together[0]].weight(linear.weight.detach().float())
            target = self._target(weight, hessian, moments)
            integers = rounded(target, self._bits(together), self.recipe, importance, hessian)
            bias = None if linear.bias is None else linear.bias.detach().float().clone()
            if self.recipe.bias_correction or self.recipe.compensation is not None:
                exact, read = (
                    torch.stack(means).mean(0)
                    for means in ([m.mean for m in moments], [m.read_mean for m in moments])
                )
                bias = corrected_bias(bias, weight, integers.dequantized(), exact, read)
            made.append(_Weight(integers, bias))
        return made

    def _target(
        self, weight: Tensor, hessian: Tensor | None, moments: Sequence[InputMoments]
    ) -> Tensor:
        """What the codes are to come near to."""
        slot = self.recipe.compensation
        cross = _mean([each.cross for each in moments if each.cross is not None])
        if slot is None or hessian is None or cross is None:
            return weight
        return compensated(weight, cross, hessian, slot.damping)

    def _bits(self, together: Sequence[SharedInput]) -> int:
        bits = self.plan.bits(together[0].linears[0])
        if bits is None:
            raise ValueError(f"{together[0].linears[0]} is to stay in float")
        return bits

    def _importance(self, together: Sequence[SharedInput]) -> Tensor:
        """Mean square of each input channel [in] as it is read, over sampled rows."""
        smoothing = self.smoothing[together[0]]
        rows = [smoothing.inputs(self.statistics[shared].rows) for shared in together]
        return torch.stack([each.square().mean(0) for each in rows]).mean(0)


def rounded(
    weight: Tensor,
    bits: int,
    recipe: Recipe,
    importance: Tensor,
    hessian: Tensor | None,
) -> Integers:
    """Scales, then codes, of one weight [out, in]."""
    slot, grid = recipe.weights, recipe.weights.grid(bits)
    if slot.per == "group" and bits == 4:
        scale, multipliers = two_level_scales(
            weight, slot.group, grid, importance, slot.largest_multiplier
        )
        wide = two_level_steps(scale, multipliers, weight.shape[1])
        codes = recipe.rounding.round(weight, wide, grid, hessian)
        return Integers.of(codes, scale, bits, multipliers)
    if slot.per == "tensor":
        scale = tensor_scale(weight, grid)
    elif slot.range == "mse":
        scale = least_squares_scale(weight, grid, importance)
    else:
        scale = absmax_scale(weight, grid)
    return Integers.of(recipe.rounding.round(weight, scale, grid, hessian), scale, bits)


def _mean(tensors: Sequence[Tensor]) -> Tensor | None:
    """Of none: None. Of one, as nearly always: itself, since Hessians are large."""
    if len(tensors) < 2:
        return tensors[0] if tensors else None
    return torch.stack(list(tensors)).mean(0)


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
