"""From a checkpoint folder to its quantized model, and from that to a folder behind the gate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.batching import encode_unlabelled
from quantkit.calibration_texts import calibration_batches, word_counts
from quantkit.checkpoint import (
    length_limit,
    load_float,
    padding_of,
    reachable_rows,
    takes_token_types,
)
from quantkit.encoder import describe, head_of
from quantkit.exporter import Exported, export
from quantkit.files import write_json
from quantkit.heads import Head
from quantkit.metrics import main_score
from quantkit.onnx_file import target_of
from quantkit.packed import save_packed
from quantkit.prediction import predict
from quantkit.ptq import LayerStore, Progress, Quantized, quantize
from quantkit.recipe import Recipe
from quantkit.tokenization import Inputs
from quantkit.trim import Coverage, Trimmed, trim_to_corpus

__all__ = [
    "QuantizedCheckpoint",
    "keep_findings",
    "parity_file",
    "quantize_checkpoint",
    "write_quantized",
]

COSINE_TEXTS = 256


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A quantized model with the float one that it was made of.

    Attributes:
        model: float, its vocabulary trimmed if the recipe says so.
        tokenizer: of both.
        limit: tokens a text may have.
        quantized: what became of `model`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limit: int
    quantized: Quantized


def quantize_checkpoint(
    recipe: Recipe,
    checkpoint: Path,
    inputs: Inputs,
    *,
    store: LayerStore,
    held_out: Inputs | None = None,
    notes: Sequence[str] = (),
    say: Progress | None = None,
) -> QuantizedCheckpoint:
    """Quantize a float checkpoint, calibrated on `inputs`; the same bits each time.

    Args:
        recipe: how.
        checkpoint: its folder.
        inputs: texts as in training; see `pipeline.ptq_checkpoint`.
        store: where finished layers are kept, so that a killed run can go on.
        held_out: other texts, on which a trimmed vocabulary is judged.
        notes: what the packed folder is to say before its other notes.
        say: told what is done, how many are done, and of how many.
    """
    model, tokenizer = load_float(checkpoint)
    trimmed: Trimmed | None = None
    if recipe.embeddings.trim == "corpus":
        trimmed = trim_to_corpus(model, tokenizer, inputs, held_out=held_out)
        model, tokenizer = trimmed.model, trimmed.tokenizer
    limit = length_limit(model, tokenizer, recipe.max_length)
    quantized = quantize(
        model,
        calibration_batches(model, tokenizer, inputs, recipe, limit),
        recipe=recipe,
        reachable_rows=reachable_rows(tokenizer),
        word_counts=_counts(recipe, model, tokenizer, inputs, limit),
        store=store,
        progress=say,
    )
    quantized = replace(quantized, notes=(*notes, *quantized.notes))
    if trimmed is not None:
        quantized = _with_coverage(quantized, trimmed.coverage)
    if (head := head_of(model)).kind == "features":
        note = _cosine_note(model, quantized, tokenizer, inputs, head, limit)
        quantized = replace(quantized, notes=(*quantized.notes, note))
    return QuantizedCheckpoint(model, tokenizer, limit, quantized)


def write_quantized(made: QuantizedCheckpoint, quantized: Quantized, folder: Path) -> Exported:
    """Write packed checkpoint, ONNX file and the gate's findings into `folder`, which exists.

    Args:
        made: brings tokenizer and limit.
        quantized: `made.quantized`, or what training made of it.
        folder: see `files.new_folder`.

    Raises:
        ParityError: the file does not compute what the model does.
    """
    save_packed(quantized, made.tokenizer, folder, max_length=made.limit)
    recipe = quantized.recipe
    exported = export(
        quantized.model, made.tokenizer, folder, recipe=recipe, max_length=recipe.max_length
    )
    return keep_findings(exported, folder)


def parity_file(path: Path, folder: Path) -> Path:
    """Where the gate's findings on the ONNX file `path` of `folder` lie."""
    target = target_of(path)
    return folder / ("parity.json" if target == "cpu" else f"parity-{target}.json")


def keep_findings(exported: Exported, folder: Path) -> Exported:
    """Write what the gate found on an exported file of `folder`."""
    write_json(parity_file(exported.path, folder), exported.parity.to_json())
    return exported


def _counts(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    max_length: int,
) -> Tensor | None:
    """What decides which rows of a 4-bit table keep 8 bits; None where there is no such table."""
    if recipe.embeddings.bits != 4 or not recipe.embeddings.frequent:
        return None
    return word_counts(model, tokenizer, inputs, max_length)


def _with_coverage(quantized: Quantized, coverage: Coverage) -> Quantized:
    """Count the rows that a trimmed vocabulary lost, and say what it covers."""
    table = quantized.model.get_submodule(describe(quantized.model).embedding.words)
    return replace(
        quantized,
        trimmed_rows=coverage.rows_before - coverage.rows_after,
        notes=(*quantized.notes, coverage.note(table)),
    )


def _cosine_note(
    model: PreTrainedModel,
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    head: Head,
    max_length: int,
) -> str:
    """How near the vectors of the first texts stay to the float model's."""
    texts = Inputs(inputs.first[:COSINE_TEXTS])
    types = takes_token_types(model)
    encoded = encode_unlabelled(tokenizer, texts, head, max_length, types=types)
    before, after = (
        predict(each, encoded, pad_token_id=padding_of(tokenizer))
        for each in (model, quantized.model)
    )
    mean = main_score(head, before, after)
    return f"Vectors of {len(texts)} texts: mean cosine with the float model's {mean:.6f}."
