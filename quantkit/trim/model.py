"""A float model and its tokenizer with the word rows of one corpus's tokens alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.checkpoint import reachable_rows
from quantkit.encoder import describe, head_of
from quantkit.errors import CheckpointError
from quantkit.placement import swap
from quantkit.tokenization import Inputs
from quantkit.trim.coverage import Coverage
from quantkit.trim.tokenizer import special_ids
from quantkit.trim.vocabulary import Corpus

__all__ = ["Trimmed", "trim_to_corpus"]


@dataclass(frozen=True)
class Trimmed:
    """A model and the tokenizer that fits it.

    model       shares every tensor but the word table with the model it was made of
    tokenizer   what a saved folder's tokenizer will be
    coverage    what both are worth on which texts
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    coverage: Coverage


def trim_to_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    *,
    held_out: Inputs | None = None,
) -> Trimmed:
    """Remove the word rows of tokens that do not occur in texts, and number the others anew.

    Tokens that stay: those of the texts (not cut), special and added ones, single characters, and
    what these are made of (see `pieces`). The texts keep their tokens, so the model's answers to
    them stay the same bits; other texts may be split into more and shorter pieces. RoBERTa counts
    its positions from the padding id, so there all ids up to it stay.

    Args:
        model: float; itself left as it is.
        tokenizer: the model's; left as it is.
        inputs: the texts, of which all are read.
        held_out: other texts to measure the coverage on, of which at most 10,000 are read. Default:
            every tenth of `inputs`, with a vocabulary of the other nine tenths.

    Raises:
        CheckpointError: a tokenizer that cannot be trimmed, or one that has tokens which the
            model's word table has no rows for.
    """
    words = head_of(model).kind == "words"
    corpus = Corpus(tokenizer, inputs, words, _fixed_ids(model, tokenizer))
    chosen = corpus.vocabulary()
    tokens = corpus.check(chosen)
    found = corpus.measured_on_a_tenth() if held_out is None else corpus.measured(chosen, held_out)
    coverage = Coverage(
        rows_before=_table(model).num_embeddings,
        reachable=reachable_rows(tokenizer),
        rows_after=len(chosen.rows),
        texts=len(inputs),
        tokens=tokens,
        held_out=found,
        validation=held_out is not None,
    )
    return Trimmed(_with_rows(model, chosen.rows), chosen.tokenizer, coverage)


def _fixed_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special ids of the tokenizer and the configuration, and those that positions count from.

    Raises:
        CheckpointError: the tokenizer has tokens beyond the model's table.
    """
    table, vocabulary = _table(model), tokenizer.get_vocab()
    if reachable_rows(tokenizer) > table.num_embeddings:
        raise CheckpointError(
            f"The tokenizer reaches token id {reachable_rows(tokenizer) - 1}, and the model's word "
            f"table has {table.num_embeddings} rows. The tokenizer is another model's, or the "
            f"model lacks model.resize_token_embeddings(len(tokenizer))."
        )
    padding = describe(model).embedding.padding
    ids = {*special_ids(tokenizer), *range(0 if padding is None else padding + 1)}
    return frozenset(ids | (set(_config_ids(model).values()) & set(vocabulary.values())))


def _with_rows(model: PreTrainedModel, rows: Sequence[int]) -> PreTrainedModel:
    """A model with these rows of the word table, and their places as ids in its configuration."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    result = copy.deepcopy(model, dict[int, Any](tensors))
    table, new = _table(model), {old: at for at, old in enumerate(rows)}
    padding = None if table.padding_idx is None else new.get(table.padding_idx)
    weight = table.weight.detach()[list(rows)]
    smaller = nn.Embedding(len(rows), table.embedding_dim, padding, _weight=weight)
    swap(result, {describe(model).embedding.words: smaller})
    for name, old in _config_ids(model).items():
        setattr(result.config, name, new.get(old))  # None: an id that was no token's
    result.config.vocab_size = len(rows)
    result.train(model.training)
    return result


def _config_ids(model: PreTrainedModel) -> dict[str, int]:
    """The token ids in a configuration, by name."""
    values = model.config.to_dict().items()
    return {name: old for name, old in values if name.endswith("_token_id") and type(old) is int}


def _table(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_submodule(describe(model).embedding.words)
    if not isinstance(table, nn.Embedding):
        raise CheckpointError(
            f"The model's word table is a {type(table).__name__}: it is quantized already. "
            f"Trim the float model, and quantize that."
        )
    return table
