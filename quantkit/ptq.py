"""Post-training quantization: from a float model and calibration batches to integers."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit import numerics
from quantkit.algorithms import smoothquant
from quantkit.algorithms.smoothquant import Observed, SmoothQuant
from quantkit.calibration import (
    Batch,
    InputStatistics,
    collect_histograms,
    collect_statistics,
)
from quantkit.calibrators.histogram import Histogram
from quantkit.encoder import EncoderPlan, SharedInput, describe, unroll
from quantkit.errors import CheckpointError, DataError
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear
from quantkit.numerics import asymmetric_grid, scale_and_zero_point, symmetric_grid
from quantkit.placement import Plan, decide, quantized_calls, quantized_inputs, swap
from quantkit.recipe import Recipe

__all__ = ["InputDecision", "Quantized", "check_finite", "quantize"]

# Above this share of texts with a clipped token, a calibrator is suspected of cutting off
# activations that the model needs.
CLIPPED_TEXTS_WARNING = 0.01


@dataclass(frozen=True)
class InputDecision:
    """What was chosen for one tensor that Linears read."""

    linears: tuple[str, ...]
    alpha: float | None  # of SmoothQuant; None without smoothing
    folded: bool  # the smoothing vector moved into the producer
    low: float  # range of the grid, after smoothing
    high: float
    error: float | None  # mean relative squared error of the product on sampled rows
    clipped_texts: float  # share of calibration texts with a value outside the range


@dataclass(frozen=True)
class Quantized:
    """A quantized model with the decisions that led to it."""

    model: PreTrainedModel
    plan: Plan
    recipe: Recipe
    decisions: tuple[InputDecision, ...]
    notes: tuple[str, ...]
    trimmed_rows: int  # word embedding rows removed

    def decisions_json(self) -> list[dict[str, Any]]:
        """The decisions as plain mappings."""
        return [asdict(decision) for decision in self.decisions]


@dataclass(frozen=True)
class _Smoothing:
    """The smoothing of one weight and of all tensors that it is applied to."""

    choice: smoothquant.Smoothed | None
    multiplier: Tensor | None  # 1 / s [in], of the inputs
    folded: bool  # the multiplier moves into the producer


def quantize(
    model: PreTrainedModel,
    calibration: Iterable[Batch],
    *,
    recipe: Recipe | None = None,
    reachable_rows: int | None = None,
) -> Quantized:
    """Quantize a float encoder with its head; `model` itself is left as it is.

    Args:
        model: BERT, ALBERT, DistilBERT, RoBERTa, XLM-R or ELECTRA, as a sequence classifier, a
            token classifier or bare. Of an ALBERT that calls one layer several times the
            result has a module per call, with one set of weights (see `encoder.unroll`).
        calibration: batches as a Hugging Face tokenizer makes them with
            `return_tensors="pt"`; padding is ignored through `attention_mask`.
        recipe: the slots from `weights` to `skip` are read; default: W8A8 as documented.
        reachable_rows: word embedding rows to keep, the tokenizer's largest id plus one;
            None keeps all.

    Raises:
        CheckpointError: weights or activations that are not finite, or an unknown family.
        DataError: no calibration batch, or token ids beyond `reachable_rows`.
        RecipeError: a skip pattern that matches nothing.
    """
    recipe = recipe or Recipe(name="default", task="none", model="none")
    check_finite(model)
    unrolled = unroll(model)
    encoder = describe(unrolled)
    plan = decide(encoder, recipe)
    batches = list(calibration)
    _check_ids(batches, reachable_rows)
    inputs, calls = quantized_inputs(encoder, plan), quantized_calls(encoder, plan)
    statistics = collect_statistics(unrolled, inputs, batches, recipe.calibration.seed)
    smoothing: dict[SharedInput, _Smoothing] = {}
    for together in calls:
        found = _smooth(unrolled, together, statistics, plan, recipe)
        smoothing |= dict.fromkeys(together, found)
    quantizers, decisions = _input_quantizers(unrolled, statistics, smoothing, batches, recipe)
    modules = _linears(unrolled, calls, smoothing, quantizers, recipe)
    embeddings, trimmed = _embeddings(unrolled, encoder, plan, recipe, reachable_rows)
    result = _copy_without(unrolled, {**modules, **embeddings})
    swap(result, {**modules, **embeddings})
    nn.Module.float(result)  # what stays in float; checkpoints are often loaded in 16 bits
    if trimmed:
        result.config.vocab_size -= trimmed
    return Quantized(
        result.train(False), plan, recipe, tuple(decisions), _notes(decisions, recipe), trimmed
    )


def check_finite(model: nn.Module) -> None:
    """Refuse weights that no integer can stand for.

    Raises:
        CheckpointError: naming the first tensor that holds NaN or infinity.
    """
    for name, tensor in model.named_parameters():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(
                f"The weight {name} holds {bad} values that are NaN or infinite, of "
                f"{tensor.numel()}. The checkpoint is broken (often a training run that "
                f"diverged): take an earlier one, or train again with a lower learning rate."
            )


def _check_ids(batches: list[Batch], reachable_rows: int | None) -> None:
    if reachable_rows is None:
        return
    largest = max((int(batch["input_ids"].max()) for batch in batches), default=0)
    if largest >= reachable_rows:
        raise DataError(
            f"Calibration holds token id {largest}, but the tokenizer reaches only ids below "
            f"{reachable_rows}: texts were tokenized with another tokenizer than the model's."
        )


def _weight(model: nn.Module, shared: SharedInput) -> Tensor:
    """The weights that read one tensor, stacked [out, in], float32."""
    return torch.cat([_linear(model, name).weight.detach().float() for name in shared.linears])


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise CheckpointError(
            f"{name} is a {type(module).__name__}, not a Linear. Is the model quantized already?"
        )
    return module


def _smooth(
    model: nn.Module,
    calls: Sequence[SharedInput],
    statistics: Mapping[SharedInput, InputStatistics],
    plan: Plan,
    recipe: Recipe,
) -> _Smoothing:
    """One smoothing vector for all inputs of the same weights."""
    if not isinstance(recipe.smoothing, SmoothQuant):
        return _Smoothing(None, None, folded=False)
    seen = [statistics[shared] for shared in calls]
    choice = smoothquant.search(
        [Observed(each.rows, each.low, each.high) for each in seen],
        _weight(model, calls[0]),
        recipe.smoothing.alphas,
        asymmetric_grid(recipe.activations.bits),
        symmetric_grid(recipe.weights.bits),
    )
    producer = calls[0].producer
    return _Smoothing(
        choice, 1.0 / choice.vector, folded=producer is not None and plan.quantized(producer)
    )


def _input_quantizers(
    model: nn.Module,
    statistics: Mapping[SharedInput, InputStatistics],
    smoothing: Mapping[SharedInput, _Smoothing],
    batches: list[Batch],
    recipe: Recipe,
) -> tuple[dict[SharedInput, InputQuantizer], list[InputDecision]]:
    """Scale, zero point and multiplier of every shared input."""
    multipliers = {shared: smoothing[shared].multiplier for shared in statistics}
    observed = {
        shared: _observed_range(statistics[shared], multipliers[shared]) for shared in statistics
    }
    calibrator = recipe.activations.calibrator
    histograms: Mapping[SharedInput, Histogram] = {}
    if calibrator.needs_histogram:
        histograms = collect_histograms(model, observed, multipliers, batches)
    quantizers: dict[SharedInput, InputQuantizer] = {}
    decisions = []
    grid = asymmetric_grid(recipe.activations.bits)
    for shared, bounds in observed.items():
        histogram = histograms.get(shared)
        low, high = calibrator.range(*bounds, histogram)
        scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), grid)
        choice, folded = smoothing[shared].choice, smoothing[shared].folded
        quantizers[shared] = InputQuantizer(
            scale, zero_point, None if folded else multipliers[shared]
        )
        decisions.append(
            InputDecision(
                shared.linears,
                None if choice is None else choice.alpha,
                folded,
                low,
                high,
                None if choice is None else choice.error,
                0.0 if histogram is None else histogram.clipped_texts(low, high),
            )
        )
    return quantizers, decisions


def _observed_range(statistics: InputStatistics, multiplier: Tensor | None) -> tuple[float, float]:
    """Extremes of the smoothed tensor: exact, since smoothing acts on whole channels."""
    factor = torch.ones_like(statistics.low) if multiplier is None else multiplier
    return float((statistics.low * factor).amin()), float((statistics.high * factor).amax())


def _linears(
    model: nn.Module,
    calls: Sequence[tuple[SharedInput, ...]],
    smoothing: Mapping[SharedInput, _Smoothing],
    quantizers: Mapping[SharedInput, InputQuantizer],
    recipe: Recipe,
) -> dict[str, nn.Module]:
    """A QuantLinear for every Linear of `calls`; those of the same weights share tensors."""
    folds = {
        shared.producer: smoothing[shared].multiplier
        for together in calls
        for shared in together
        if smoothing[shared].folded
    }
    modules: dict[str, nn.Module] = {}
    for together in calls:
        choice = smoothing[together[0]].choice
        vector = None if choice is None else choice.vector
        for at, first in enumerate(together[0].linears):
            integers = _integers(_linear(model, first), vector, folds.get(first), recipe)
            for shared in together:
                modules[shared.linears[at]] = QuantLinear(
                    *integers, quantizers[shared], owner=at == 0
                )
    return modules


def _integers(
    linear: nn.Linear, vector: Tensor | None, factor: Tensor | None, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes [out, in], scale [out, 1] and bias [out] of a Linear.

    Its inputs are divided by `vector` [in], its outputs multiplied by `factor` [out].
    """
    grid = symmetric_grid(recipe.weights.bits)
    weight = linear.weight.detach().float()
    if vector is not None:
        weight = weight * vector
    bound = weight.abs().amax(1, keepdim=True)
    scale, zero_point = scale_and_zero_point(-bound, bound, grid)
    codes = recipe.rounding.round(weight, scale, zero_point, grid)
    bias = None if linear.bias is None else linear.bias.detach().float().clone()
    # A factor per output channel leaves the codes as they are: only scale and bias move.
    if factor is not None:
        scale = scale * factor[:, None]
        bias = None if bias is None else bias * factor
    return codes, scale, bias


def _embeddings(
    model: nn.Module, encoder: EncoderPlan, plan: Plan, recipe: Recipe, reachable: int | None
) -> tuple[dict[str, nn.Module], int]:
    """A QuantEmbedding for every planned table, and the number of word rows removed."""
    grid = symmetric_grid(recipe.embeddings.bits)
    modules: dict[str, nn.Module] = {}
    trimmed = 0
    for name in encoder.embedding.tables:
        if not plan.quantized(name):
            continue
        module: Any = model.get_submodule(name)
        table: Tensor = module.weight.detach().float()
        if name == encoder.embedding.words and recipe.embeddings.trim and reachable is not None:
            trimmed = max(0, len(table) - reachable)
            table = table[: len(table) - trimmed]
        bound = table.abs().amax(1, keepdim=True)
        scale, zero_point = scale_and_zero_point(-bound, bound, grid)
        modules[name] = QuantEmbedding(numerics.quantize(table, scale, zero_point, grid), scale)
    return modules, trimmed


def _copy_without(model: PreTrainedModel, replaced: Mapping[str, nn.Module]) -> PreTrainedModel:
    """A deep copy that shares the tensors of modules about to be replaced: no memory twice."""
    shared = [p for name in replaced for p in model.get_submodule(name).parameters()]
    return copy.deepcopy(model, {id(parameter): parameter for parameter in shared})


def _notes(decisions: list[InputDecision], recipe: Recipe) -> tuple[str, ...]:
    clipped = [d for d in decisions if d.clipped_texts > CLIPPED_TEXTS_WARNING]
    if not clipped:
        return ()
    worst = max(clipped, key=lambda decision: decision.clipped_texts)
    return (
        f"The {recipe.activations.calibrator.name} calibrator clips a token in more than 1 % of "
        f"the calibration texts at {len(clipped)} of {len(decisions)} inputs (most: "
        f"{worst.clipped_texts:.0%} at {worst.linears[0]}). Massive activations carry meaning in "
        f"BERT: `calibrator: {{name: minmax}}` keeps them.",
    )
