"""From a quantized model to a trainable one that computes the same, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit.algorithms.hadamard import as_read
from quantkit.algorithms.trained_ranges import Ema, Lsq, Ranges
from quantkit.encoder import SharedInput, describe, unroll
from quantkit.errors import CheckpointError, RecipeError
from quantkit.integers import Integers
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear, TokenQuantizer
from quantkit.placement import copy_without, quantized_calls, swap
from quantkit.ptq import InputDecision, Quantized, output_factors
from quantkit.qat.modules import (
    FakeQuantEmbedding,
    FakeQuantInput,
    FakeQuantLinear,
    FakeQuantToken,
    FakeReader,
)
from quantkit.qat.start import into_cells
from quantkit.qat.together import RangesTogether, WeightsTogether
from quantkit.qat.watch import TokenMask

__all__ = ["pack", "prepare"]


def prepare(model: PreTrainedModel, quantized: Quantized, ranges: Ranges) -> PreTrainedModel:
    """A trainable model that starts as `quantized`; neither argument is changed.

    In the place of every quantized module stands a trainable one of `quantkit.qat.modules`. Its
    weight is the float model's, smoothed and rotated as the quantized one's is, and moved into
    the rounding cells of the codes: in eval mode and without gradients, the answers are
    `quantized.model`'s bit for bit. What is not quantized is `quantized.model`'s own, copied.

    It is an ordinary model in eval mode: train it in any loop with `parameter_groups`, call
    `set_progress` before each step, and end with `pack`.

    Args:
        model: the float model that `quantized` was made of.
        quantized: by `ptq.quantize`.
        ranges: what becomes of scales and zero points.

    Raises:
        CheckpointError: `model` does not fit `quantized`.
        RecipeError: an input that was always 0 on the calibration texts has no range to train.
    """
    _refuse_dead(quantized.decisions)
    tokens = TokenMask()
    maker = _Maker(unroll(model), quantized, ranges, tokens)
    result = copy_without(
        quantized.model, _of_kinds(quantized.model, (QuantLinear, QuantEmbedding))
    )
    swap(result, maker.modules())
    _join(result)
    if isinstance(ranges, Ema):
        result.register_forward_pre_hook(tokens, with_kwargs=True)
    result.train(False)
    return result


def _join(model: nn.Module) -> None:
    """Let the modules of a model make together what each needs."""
    linears = [module for module in model.modules() if isinstance(module, FakeQuantLinear)]
    weights = WeightsTogether(linears)
    for linear in linears:
        linear.together = weights
    readers = [module for module in model.modules() if isinstance(module, FakeQuantInput)]
    if all(reader.log_scale is not None for reader in readers):
        ranges = RangesTogether(readers)
        for reader in readers:
            reader.together = ranges


def pack(trained: PreTrainedModel, quantized: Quantized) -> Quantized:
    """The integers and scales as trained, ready for `packed.save_packed` and for export.

    Args:
        trained: by `prepare`, then trained; not changed.
        quantized: what it was prepared from. Plan, recipe and notes stay; of the decisions the
            ranges are as trained, and the errors those that training began with.

    Raises:
        CheckpointError: a parameter is not finite.
    """
    for name, tensor in trained.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{name} is not finite after training: the run diverged. Train again with a lower "
                f"learning rate."
            )
    result = copy_without(trained, _of_kinds(trained, (FakeQuantLinear, FakeQuantEmbedding)))
    swap(result, _packed_modules(trained, quantized))
    decisions = tuple(_as_trained(result, decision) for decision in quantized.decisions)
    return replace(quantized, model=result.train(False), decisions=decisions)


@dataclass(frozen=True)
class _Maker:
    """Makes the trainable modules of one model."""

    model: nn.Module  # float, unrolled
    quantized: Quantized
    ranges: Ranges
    tokens: TokenMask

    @property
    def learned(self) -> bool:
        return isinstance(self.ranges, Lsq)

    def modules(self) -> dict[str, nn.Module]:
        """By module name."""
        made: dict[str, nn.Module] = {}
        encoder = describe(self.model)
        for name in encoder.embedding.tables:
            table = self.quantized.model.get_submodule(name)
            if isinstance(table, QuantEmbedding):
                made[name] = self._embedding(name, table)
        factors = output_factors(self.quantized)
        for calls in quantized_calls(encoder, self.quantized.plan):
            made |= self._linears(calls, factors)
        return made

    def _embedding(self, name: str, start: QuantEmbedding) -> FakeQuantEmbedding:
        table: Any = self.model.get_submodule(name)
        integers = start.integers
        weight = table.weight.detach().float()[: integers.shape[0]]
        _check_shape(name, weight, integers)
        latent = into_cells(weight, integers.codes, integers.steps)
        if start.frequent_rows is not None and start.frequent_codes is not None:
            rows = start.frequent_rows
            latent[rows] = into_cells(weight[rows], start.frequent_codes, integers.scale[rows])
        return FakeQuantEmbedding(latent, start, table.padding_idx, learned=self.learned)

    def _linears(
        self, calls: tuple[SharedInput, ...], factors: Mapping[str, Tensor]
    ) -> dict[str, nn.Module]:
        """Linears of the same weights: one set of parameters, a reader for each call."""
        readers, slot = [self._reader(shared) for shared in calls], self.quantized.recipe.weights
        made: dict[str, nn.Module] = {}
        for at, first in enumerate(calls[0].linears):
            weight = self._smoothed(first, calls[0], factors.get(first))
            for call, (shared, reader) in enumerate(zip(calls, readers, strict=True)):
                start = self._start(shared.linears[at])
                module = FakeQuantLinear(
                    weight, start, reader, slot, owner=at == 0, learned=self.learned
                )
                if call:
                    first_module = made[first]
                    assert isinstance(first_module, FakeQuantLinear)
                    module.share(first_module)
                made[shared.linears[at]] = module
        return made

    def _smoothed(self, name: str, shared: SharedInput, factor: Tensor | None) -> Tensor:
        """The latent weight of a Linear."""
        linear: Any = self.model.get_submodule(name)
        integers = self._start(name).integers
        weight = linear.weight.detach().float()
        _check_shape(name, weight, integers)
        quantizer = self._start(name).input_quantizer
        rotation = None if quantizer is None else quantizer.rotation
        weight = as_read(weight, self.quantized.vectors.get(shared.linears[0]), rotation)
        weight = weight if factor is None else weight * factor[:, None]
        return into_cells(weight, integers.codes, integers.steps)

    def _start(self, name: str) -> QuantLinear:
        module = self.quantized.model.get_submodule(name)
        if not isinstance(module, QuantLinear):
            raise CheckpointError(f"{name} is a {type(module).__name__}, not a QuantLinear.")
        return module

    def _reader(self, shared: SharedInput) -> FakeReader | None:
        start = self._start(shared.linears[0]).input_quantizer
        if start is None:
            return None
        if isinstance(start, TokenQuantizer):
            return FakeQuantToken(start)
        symmetric = self.quantized.recipe.activations.symmetric
        return FakeQuantInput(start, self.ranges, symmetric=symmetric, tokens=self.tokens)


def _packed_modules(trained: PreTrainedModel, quantized: Quantized) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {
        name: module.packed()
        for name, module in trained.named_modules()
        if isinstance(module, FakeQuantEmbedding)
    }
    for calls in quantized_calls(describe(trained), quantized.plan):
        modules = [_linear(trained, name) for name in calls[0].linears]
        integers = [module.integers() for module in modules]
        quantizers = _packed_readers(trained, calls)
        for at in range(len(modules)):
            packed = [
                modules[at].packed(integers[at], quantizer, owner=at == 0)
                for quantizer in quantizers
            ]
            for other in packed[1:]:
                other.bias = packed[0].bias
            made |= {shared.linears[at]: each for shared, each in zip(calls, packed, strict=True)}
    return made


def _packed_readers(
    trained: PreTrainedModel, calls: tuple[SharedInput, ...]
) -> list[InputQuantizer | TokenQuantizer | None]:
    """One for each call, of one multiplier."""
    readers = [_linear(trained, shared.linears[0]).reader for shared in calls]
    packed = [None if reader is None else reader.packed() for reader in readers]
    for other in packed[1:]:
        if other is not None and packed[0] is not None:
            other.multiplier = packed[0].multiplier
    return packed


def _linear(trained: PreTrainedModel, name: str) -> FakeQuantLinear:
    module = trained.get_submodule(name)
    if not isinstance(module, FakeQuantLinear):
        raise CheckpointError(
            f"{name} is a {type(module).__name__}, not a FakeQuantLinear. Pass the model that "
            f"`prepare` made of this quantized one."
        )
    return module


def _as_trained(model: nn.Module, decision: InputDecision) -> InputDecision:
    module = model.get_submodule(decision.linears[0])
    quantizer = module.input_quantizer if isinstance(module, QuantLinear) else None
    if not isinstance(quantizer, InputQuantizer):
        return decision
    ends = torch.tensor([quantizer.grid.qmin, quantizer.grid.qmax], dtype=torch.float32)
    low, high = ((ends - float(quantizer.zero_point)) * quantizer.scale.cpu()).tolist()
    return replace(decision, low=low, high=high)


def _refuse_dead(decisions: tuple[InputDecision, ...]) -> None:
    dead = [d.linears[0] for d in decisions if d.low is not None and d.low == d.high]
    if dead:
        raise RecipeError(
            f"The input of {dead[0]} was always 0 on the calibration texts"
            f"{f', and that of {len(dead) - 1} others' if len(dead) > 1 else ''}: it has no range "
            f"to train. Calibrate with texts that reach it, or leave it in float: "
            f"skip: [{dead[0]}]."
        )


def _check_shape(name: str, weight: Tensor, integers: Integers) -> None:
    if tuple(weight.shape) != integers.shape:
        raise CheckpointError(
            f"{name} is {[*weight.shape]} in the float model and {[*integers.shape]} in the "
            f"quantized one. Pass the float model that was quantized."
        )


def _of_kinds(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]
