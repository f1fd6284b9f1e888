"""The whole of post-training quantization, from a float model to a model of integers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit.calibration import Batch, InputStatistics, batches_of, collect_statistics
from quantkit.encoder import SharedInput, describe, unroll
from quantkit.errors import CheckpointError, DataError, RecipeError
from quantkit.memory import return_freed_memory
from quantkit.placement import (
    Plan,
    check_groups,
    copy_without,
    decide,
    quantized_calls,
    quantized_inputs,
    swap,
)
from quantkit.ptq.embeddings import embeddings
from quantkit.ptq.inputs import InputDecision, Reader, clipping_notes, input_readers, rotation_notes
from quantkit.ptq.resume import LayerStore, fingerprint
from quantkit.ptq.smoothing import Smoothing, folds, linear_of, smooth
from quantkit.ptq.weights import Progress, WeightMaker
from quantkit.recipe import Recipe, recipe_hash

__all__ = ["Quantized", "check_finite", "output_factors", "quantize"]


@dataclass(frozen=True)
class Quantized:
    """A quantized model with the decisions that led to it."""

    model: PreTrainedModel
    plan: Plan
    recipe: Recipe
    decisions: tuple[InputDecision, ...]
    notes: tuple[str, ...]
    trimmed_rows: int  # word embedding rows removed
    # The smoothing vector s [in] of each smoothed input, under the name of its first Linear.
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    def decisions_json(self) -> list[dict[str, Any]]:
        """The decisions as plain mappings."""
        return [asdict(decision) for decision in self.decisions]


def quantize(
    model: PreTrainedModel,
    calibration: Iterable[Batch],
    *,
    recipe: Recipe | None = None,
    reachable_rows: int | None = None,
    word_counts: Tensor | None = None,
    store: LayerStore | None = None,
    progress: Progress | None = None,
    fold: bool = True,
) -> Quantized:
    """Quantize a float encoder with its head; `model` itself is left as it is.

    Args:
        model: BERT, ALBERT, DistilBERT, RoBERTa, XLM-R or ELECTRA, as a sequence classifier, a
            token classifier or bare. Of an ALBERT that calls one layer several times the
            result has a module per call, with one set of weights (see `encoder.unroll`).
        calibration: batches as a Hugging Face tokenizer makes them with
            `return_tensors="pt"`; padding is ignored through `attention_mask`.
        recipe: the slots from `weights` to `eight_bits` are read; default: W8A8 as documented.
        reachable_rows: word embedding rows to keep, the tokenizer's largest id plus one;
            None keeps all.
        word_counts: int64 [rows], how often each token id occurs in texts like those to come;
            it decides which rows of a 4-bit table keep 8 bits. Default: in the calibration.
        store: where finished layers are kept, so that a killed run can go on; default: nowhere.
        progress: told what is done, how many are done, and of how many.
        fold: let the value projection do the smoothing of attention's output, where it can.
            Without, every Linear can be exchanged for the float one by itself.

    Raises:
        CheckpointError: weights or activations that are not finite, or an unknown family.
        DataError: no calibration batch, something else than one, or token ids beyond
            `reachable_rows`.
        RecipeError: a skip pattern that matches nothing, a group that fits no layer, or
            `activations.scope: all`, which `quantkit.simulation` is for.
    """
    recipe = recipe or Recipe(name="default", task="none", model="none")
    _refuse_simulation(recipe)
    store, say = store or LayerStore(None), progress or (lambda *_: None)
    check_finite(model)
    unrolled = unroll(model)
    encoder = describe(unrolled)
    plan = decide(encoder, recipe)
    check_groups(unrolled, plan, recipe)
    batches = batches_of(calibration)
    _check_ids(batches, reachable_rows)
    store.open(fingerprint(f"{recipe_hash(recipe)} {fold}", unrolled, batches))
    inputs, calls = quantized_inputs(encoder, plan), quantized_calls(encoder, plan)
    say("reading inputs", 0, len(inputs))
    statistics = collect_statistics(unrolled, inputs, batches, recipe.calibration.seed)
    return_freed_memory()
    say("smoothing", 0, len(calls))
    smoothing = smooth(unrolled, calls, statistics, plan, recipe, fold=fold)
    readers = input_readers(unrolled, statistics, smoothing, batches, recipe)
    return_freed_memory()
    counts = _counts(batches, unrolled, encoder.embedding.words, word_counts)
    tables, trimmed = embeddings(unrolled, encoder, plan, recipe, reachable_rows, counts)
    linears = [name for shared in inputs for name in shared.linears]
    replaced = [unrolled.get_submodule(name) for name in (*linears, *tables)]
    result = copy_without(unrolled, replaced)
    swap(result, tables)
    WeightMaker(
        unrolled,
        result,
        encoder,
        plan,
        recipe,
        statistics,
        smoothing,
        readers,
        batches,
        store,
        say,
    ).fill(calls)
    decisions = _decisions(unrolled, result, plan, statistics, smoothing, readers)
    nn.Module.float(result)  # what stays in float; checkpoints are often loaded in 16 bits
    if trimmed:
        result.config.vocab_size -= trimmed
    notes = (*clipping_notes(decisions, recipe), *rotation_notes(unrolled, decisions))
    return Quantized(
        result.train(False), plan, recipe, decisions, notes, trimmed, _vectors(smoothing)
    )


def _vectors(smoothing: Mapping[SharedInput, Smoothing]) -> dict[str, Tensor]:
    return {
        shared.linears[0]: each.vector
        for shared, each in smoothing.items()
        if each.vector is not None
    }


def _decisions(
    model: nn.Module,
    quantized: nn.Module,
    plan: Plan,
    statistics: Mapping[SharedInput, InputStatistics],
    smoothing: Mapping[SharedInput, Smoothing],
    readers: Mapping[SharedInput, Reader],
) -> tuple[InputDecision, ...]:
    found = []
    for shared, seen in statistics.items():
        error = _error(model, quantized, shared, seen.rows, smoothing)
        found.append(_decision(shared, plan, smoothing[shared], readers[shared], error))
    return tuple(found)


def _decision(
    shared: SharedInput, plan: Plan, smoothing: Smoothing, reader: Reader, error: float
) -> InputDecision:
    return InputDecision(
        linears=shared.linears,
        bits=plan.bits(shared.linears[0]) or 0,
        smoothing=smoothing.setting,
        folded=smoothing.folded,
        low=reader.low,
        high=reader.high,
        clipped_texts=reader.clipped_texts,
        error=error,
        rotation=smoothing.rotation,
    )


def output_factors(quantized: Quantized) -> dict[str, Tensor]:
    """Factor [out] of the outputs of each Linear that does a later input's smoothing, by name."""
    folded = {d.linears[0] for d in quantized.decisions if d.folded}
    return {
        shared.producer: 1.0 / quantized.vectors[shared.linears[0]]
        for shared in describe(quantized.model).inputs()
        if shared.producer is not None and shared.linears[0] in folded
    }


def _refuse_simulation(recipe: Recipe) -> None:
    if recipe.activations.scope == "all":
        raise RecipeError(
            "activations.scope is 'all': a model with every tensor on a grid can be measured, but "
            "no integer kernel runs it and no file holds it. Compare it with others by quantkit "
            "study, or from Python by quantkit.simulation.simulate; what is deployed has "
            "`scope: inputs`."
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


def _check_ids(batches: Sequence[Batch], reachable_rows: int | None) -> None:
    if reachable_rows is None:
        return
    largest = max((int(batch["input_ids"].max()) for batch in batches), default=0)
    if largest >= reachable_rows:
        raise DataError(
            f"Calibration holds token id {largest}, but the tokenizer reaches only ids below "
            f"{reachable_rows}: texts were tokenized with another tokenizer than the model's."
        )


def _counts(batches: Sequence[Batch], model: nn.Module, words: str, given: Tensor | None) -> Tensor:
    """How often each row of the word table is read."""
    table: Any = model.get_submodule(words)
    rows = len(table.weight)
    if given is not None:
        return nn.functional.pad(given, (0, max(0, rows - len(given))))[:rows]
    ids = [batch["input_ids"].flatten().cpu() for batch in batches]
    return torch.bincount(torch.cat(ids), minlength=rows)


@torch.inference_mode()
def _error(
    model: nn.Module,
    quantized: nn.Module,
    shared: SharedInput,
    rows: Tensor,
    smoothing: Mapping[SharedInput, Smoothing],
) -> float:
    """Mean relative squared error of the products of one input's rows [n, in]."""
    own, factors = smoothing[shared], folds(smoothing)
    # The producer would have applied a folded multiplier already.
    read = rows * own.multiplier if own.folded and own.multiplier is not None else rows
    found, exact = [], []
    for name in shared.linears:
        found.append(quantized.get_submodule(name)(read))
        linear = linear_of(model, name)
        bias = None if linear.bias is None else linear.bias.float()
        product = nn.functional.linear(rows, linear.weight.float(), bias)
        exact.append(product * factors[name] if name in factors else product)
    residual = (torch.cat(found, 1) - torch.cat(exact, 1)).square().sum(1)
    # Relative to each row: LayerNorm brings every token to one scale.
    energy = torch.cat(exact, 1).square().sum(1).clamp(min=torch.finfo(rows.dtype).tiny)
    return float((residual / energy).mean())
