"""Small exported folders that other programs open: of whole texts, of words, of vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quantkit.exporter import export
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, with_bits, with_changes
from tests.conftest import ROWS, batch_of, small_bert
from tests.models import small_model

__all__ = ["FILES", "KINDS", "TEXTS", "folder_of_kind", "four_bits"]

TEXTS = ["makanan enak sekali", "pelayanan buruk tidak enak", "biasa saja", "enak"]
KINDS = ("sequence", "words")  # and "features"
FILES: Mapping[str, str] = {  # dtype of transformers.js -> file
    "fp32": "model.onnx",
    "q8": "model_quantized.onnx",
    "q4": "model_q4.onnx",
}


def folder_of_kind(kind: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """The same model in float, 8 and 4 bits in one folder, as a user would publish it."""
    makers = {"sequence": small_bert, "words": _tagger, "features": _encoder}
    model: PreTrainedModel = makers[kind]()
    export(model, tokenizer, folder)
    batches = [batch_of(4, 16), batch_of(4, 24, seed=1)]
    for recipe in (Recipe(name="interop", task="none", model="none"), four_bits()):
        export(quantize(model, batches, recipe=recipe).model, tokenizer, folder, recipe=recipe)
    return folder


def four_bits() -> Recipe:
    """The default of 4 bits, in groups that fit the small models."""
    recipe = with_bits(Recipe(name="interop", task="none", model="none"), 4)
    return with_changes(recipe, {"weights.group": 16, "embeddings.group": 16})


def _encoder() -> PreTrainedModel:
    return small_model("Bert", "Model")


def _tagger() -> PreTrainedModel:
    torch.manual_seed(0)
    labels = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC")))
    sizes: dict[str, Any] = dict(
        vocab_size=ROWS,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        id2label=labels,
        label2id={name: at for at, name in labels.items()},
        initializer_range=0.3,
    )
    model: PreTrainedModel = BertForTokenClassification(BertConfig(**sizes))
    model.train(False)
    return model
