"""Writing an exported folder: build the graph, run the gate, and only then keep the file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit import __version__
from quantkit.checkpoint import length_limit, reachable_rows
from quantkit.data.builtin import load_builtin
from quantkit.encoder import describe, head_of, rolled_config
from quantkit.errors import CheckpointError, RecipeError
from quantkit.exporter import recurrent
from quantkit.exporter.batches import Arrays, gate_batches, sentence_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import ParityResult, check_parity
from quantkit.files import new_file, write_json
from quantkit.modules import QuantEmbedding, QuantLinear
from quantkit.recipe import Recipe, recipe_hash
from quantkit.recurrent import RecurrentForSequenceClassification
from quantkit.simulation import FakeQuantizer

__all__ = ["Exported", "export"]

# Gelu of opset 20 is the newest operator in the files.
LEAST_ONNXRUNTIME = "1.17"
# Casts of 4-bit integers: 1.22 refuses such a file, 1.23.2 gives the model's own answers.
LEAST_ONNXRUNTIME_4_BIT = "1.23"
GATE_SENTENCES = 128  # enough rows that a 99th percentile is no single text's chance


@dataclass(frozen=True)
class Exported:
    """An ONNX file and the gate's findings on it."""

    path: Path
    parity: ParityResult


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    target: Literal["cpu"] = "cpu",
    recipe: Recipe | None = None,
    max_length: int | None = None,
    texts: Sequence[str] = (),
) -> Exported:
    """Write `onnx/model_quantized.onnx` (or `onnx/model.onnx` for a float model) in `folder`.

    `config.json` and `tokenizer.json` are written beside it unless they are there. The file
    appears only after the parity gate has passed.

    Args:
        model: float, or `quantize(...).model`, or `load_packed(...).model`.
        tokenizer: the model's.
        folder: made if need be.
        target: where the file is to run.
        recipe: its hash goes into the file's metadata.
        max_length: tokens per text; default: the model's own limit.
        texts: more texts for the gate; they are not stored.

    Raises:
        ParityError: the file would not compute the model's answers.
        CheckpointError: a part of the model that the target cannot write, or 16-bit weights.
        RecipeError: a simulation of full quantization.
    """
    folder = Path(folder)
    model.train(False)
    _refuse_simulation(model)
    _check_dtype(model)
    limit = length_limit(model, tokenizer, max_length)
    pad, rows = _padding_and_rows(model)
    metadata = _metadata(model, target, limit, pad, recipe)
    sentences = sentence_batches(
        [*_builtin_sentences(), *texts], tokenizer, limit, pad_token_id=pad
    )
    reachable = min(rows, reachable_rows(tokenizer))
    batches = gate_batches(reachable, limit, pad_token_id=pad, sentences=sentences)
    proto, parity = _built_and_checked(model, metadata, batches)
    quantized = any(isinstance(module, QuantLinear) for module in model.modules())
    path = folder / "onnx" / ("model_quantized.onnx" if quantized else "model.onnx")
    with new_file(path) as partial:
        onnx.save_model(proto, partial)
    if not (folder / "config.json").is_file():
        write_json(folder / "config.json", rolled_config(model))
    if not (folder / "tokenizer.json").is_file():
        tokenizer.save_pretrained(folder)
    return Exported(path, parity)


def _refuse_simulation(model: PreTrainedModel) -> None:
    if any(isinstance(module, FakeQuantizer) for module in model.modules()):
        raise RecipeError(
            "The model is a simulation of `activations.scope: all`, which no integer kernel runs. "
            "Score it with quantkit.prediction.predict, or compare it with others by quantkit "
            "study; to export, quantize with `scope: inputs`."
        )


def _check_dtype(model: PreTrainedModel) -> None:
    for name, tensor in model.named_parameters():
        if tensor.dtype != torch.float32:
            raise CheckpointError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}; the cpu target computes in "
                f"float32. Load the model with dtype=torch.float32, or call model.float() first."
            )


def _built_and_checked(
    model: PreTrainedModel, metadata: dict[str, str], batches: Sequence[Arrays]
) -> tuple[onnx.ModelProto, ParityResult]:
    """The graph, once its answers are proven to be the model's."""
    if isinstance(model, RecurrentForSequenceClassification):
        proto = recurrent.build(model, metadata)
        return proto, recurrent.check(model, proto, batches)
    proto = build(model, metadata)
    return proto, check_parity(model, proto, batches)


def _padding_and_rows(model: PreTrainedModel) -> tuple[int, int]:
    """The id that stands behind a text's end, and the rows of the word table."""
    if isinstance(model, RecurrentForSequenceClassification):
        return int(model.config.pad_token_id or 0), int(model.config.vocab_size)
    plan = describe(model)
    table: Any = model.get_submodule(plan.embedding.words)
    rows = table.codes if isinstance(table, QuantEmbedding) else table.weight
    return plan.pad_token_id, int(rows.shape[0])


def _metadata(
    model: PreTrainedModel, target: str, limit: int, pad_token_id: int, recipe: Recipe | None
) -> dict[str, str]:
    """What a session has to know, and where the file comes from."""
    head = head_of(model)
    return {
        "quantkit.target": target,
        "quantkit.head": json.dumps(head.to_json()),
        "quantkit.labels": "\n".join(head.labels),
        "quantkit.max_length": str(limit),
        "quantkit.pad_token_id": str(pad_token_id),
        "quantkit.version": __version__,
        "quantkit.recipe_hash": "" if recipe is None else recipe_hash(recipe),
        "quantkit.least_onnxruntime": _least_onnxruntime(model),
    }


def _least_onnxruntime(model: PreTrainedModel) -> str:
    """The first version that opens the file."""
    bits = (m.bits for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding))
    return LEAST_ONNXRUNTIME_4_BIT if 4 in bits else LEAST_ONNXRUNTIME


@cache
def _builtin_sentences() -> tuple[str, ...]:
    return tuple(load_builtin().splits["test"]["text"][:GATE_SENTENCES])
