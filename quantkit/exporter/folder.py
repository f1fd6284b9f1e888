"""Writing an exported folder: build the graph, run the gate, and only then keep the file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit import __version__
from quantkit.checkpoint import length_limit, reachable_rows
from quantkit.encoder import describe, head_of, rolled_config
from quantkit.errors import CheckpointError, RecipeError
from quantkit.exporter import recurrent
from quantkit.exporter.batches import Arrays, gate_batches, sentence_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import ParityResult, check_parity
from quantkit.exporter.half import check_cuda
from quantkit.exporter.saving import save_model
from quantkit.exporter.versions import least_onnxruntime
from quantkit.files import write_json
from quantkit.modules import QuantEmbedding, QuantLinear
from quantkit.numerics import symmetric_grid
from quantkit.onnx_file import CUDA, FOLDERS, Target
from quantkit.recipe import Recipe, recipe_hash
from quantkit.recurrent import RecurrentForSequenceClassification
from quantkit.simulation import FakeQuantizer
from quantkit.tokenizer_files import save_tokenizer

__all__ = ["Exported", "export", "export_path"]

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
    target: Target | None = None,
    recipe: Recipe | None = None,
    max_length: int | None = None,
    texts: Sequence[str] = (),
) -> Exported:
    """Write the model's ONNX file in `folder`, at `export_path`.

    `config.json` and `tokenizer.json` are written beside it unless they are there. The file
    appears only after the parity gate has passed.

    Args:
        model: float, or `quantize(...).model`, or `load_packed(...).model`.
        tokenizer: the model's.
        folder: made if need be.
        target: where the file is to run; default: the recipe's, or `cpu`.
        recipe: its hash goes into the file's metadata.
        max_length: tokens per text; default: the model's own limit.
        texts: more texts for the gate; they are not stored.

    Raises:
        ParityError: the file would not compute the model's answers.
        CheckpointError: a part of the model that the target cannot write, or 16-bit weights.
        RecipeError: a simulation of full quantization.
    """
    folder = Path(folder)
    target = target or ("cpu" if recipe is None else recipe.export.target)
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
    proto, parity = _built_and_checked(model, metadata, batches, target)
    path = export_path(model, folder, target)
    save_model(proto, path)
    if not (folder / "config.json").is_file():
        write_json(folder / "config.json", rolled_config(model))
    if not (folder / "tokenizer.json").is_file():
        save_tokenizer(tokenizer, folder)
    return Exported(path, parity)


def export_path(model: PreTrainedModel, folder: Path, target: Target) -> Path:
    """Where a model's file lies: `onnx/NAME` for `cpu`, else `onnx/TARGET/NAME`.

    The names are those that optimum and transformers.js look for: `model.onnx` in float,
    `model_fp16.onnx` in half precision, `model_quantized.onnx` with weights of 8 bits,
    `model_q4.onnx` with any of 4.
    """
    bits = {module.bits for module in model.modules() if isinstance(module, QuantLinear)}
    whole = "model_fp16.onnx" if target in CUDA else "model.onnx"
    name = "model_q4.onnx" if 4 in bits else "model_quantized.onnx" if bits else whole
    return folder / FOLDERS[target] / name


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
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}; files are made of "
                f"float32 models. Load it with dtype=torch.float32, or call model.float() first."
            )


def _built_and_checked(
    model: PreTrainedModel,
    metadata: dict[str, str],
    batches: Sequence[Arrays],
    target: Target,
) -> tuple[onnx.ModelProto, ParityResult]:
    """The graph, once its answers are proven to be the model's."""
    if isinstance(model, RecurrentForSequenceClassification):
        if target in CUDA:
            raise CheckpointError(
                "A recurrent baseline is written for --target cpu and portable alone: it is a "
                "yardstick for encoders, not what one would serve on a GPU."
            )
        proto = _with_version(recurrent.build(model, metadata))
        return proto, recurrent.check(model, proto, batches)
    proto = _with_version(build(model, metadata, target))
    if target in CUDA:
        return proto, check_cuda(model, proto, batches, target)
    return proto, check_parity(model, proto, batches)


def _with_version(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the first onnxruntime that opens it."""
    proto.metadata_props.add(key="quantkit.least_onnxruntime", value=least_onnxruntime(proto))
    return proto


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
        "quantkit.narrow": "yes" if _is_narrow(model) else "no",
        "quantkit.recipe_hash": "" if recipe is None else recipe_hash(recipe),
    }


def _is_narrow(model: PreTrainedModel) -> bool:
    """Whether no integer product can overflow 16 bits: see `slots.Weights.narrow`."""
    linears = (module for module in model.modules() if isinstance(module, QuantLinear))
    top = symmetric_grid(7).qmax
    return all(int(linear.integers.wide().abs().max()) <= top for linear in linears)


@cache
def _builtin_sentences() -> tuple[str, ...]:
    # Tables are made with `datasets`, which building a graph on a machine without it must not want.
    from quantkit.data.builtin import load_builtin

    return tuple(load_builtin().splits["test"]["text"][:GATE_SENTENCES])
