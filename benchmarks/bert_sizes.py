"""BERT-base's sizes and models of seeded random weights, which benchmarks without real ones share.

Speed and memory depend on the shapes and not on what the weights say. Nothing but torch and
transformers is imported: a machine with a GPU may have nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

__all__ = ["DECLARED_ROWS", "Sizes", "operations", "random_model"]

DECLARED_ROWS = 50_000  # of words, by IndoBERT-base's configuration; its tokenizer reaches fewer


@dataclass(frozen=True)
class Sizes:
    """A model; the defaults are BERT-base with the rows that IndoBERT's tokenizer reaches."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocab: int = 30521


def operations(sizes: Mapping[str, int], lengths: Sequence[int]) -> float:
    """Multiplications and additions of the products that a text's label needs, without padding.

    The label is read off the first token: of the last layer that is one query a text, the keys and
    values of all tokens, and one token behind attention.
    """
    hidden, inner = sizes["hidden"], sizes["intermediate"]
    query, keys_and_values = 2 * hidden**2, 4 * hidden**2
    behind = 2 * hidden * (hidden + 2 * inner)  # attention's output projection and the FFN
    pairs = 4 * hidden  # of a query and a token: score and context
    whole = sum(n * (query + keys_and_values + behind + n * pairs) for n in lengths)
    last = sum(query + behind + n * (keys_and_values + pairs) for n in lengths)
    return float((sizes["layers"] - 1) * whole + last)


def random_model(sizes: Sizes, *, distilled: bool = False, positions: int = 512) -> PreTrainedModel:
    """A classifier of three classes with seeded weights: BERT's modules, or DistilBERT's."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": sizes.vocab,
        "max_position_embeddings": positions,
        "num_labels": 3,
    }
    if distilled:
        config = DistilBertConfig(
            dim=sizes.hidden,
            hidden_dim=sizes.intermediate,
            n_layers=sizes.layers,
            n_heads=sizes.heads,
            **common,
        )
        return DistilBertForSequenceClassification(config)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            **common,
        )
    )
