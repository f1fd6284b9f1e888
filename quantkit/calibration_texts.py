"""The texts that a model is quantized with: read, sampled, and counted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.batching import collate, encode_unlabelled, equal_length_batches
from quantkit.calibration import Batch
from quantkit.checkpoint import labels_words, reachable_rows, takes_token_types
from quantkit.encoder import head_of
from quantkit.errors import DataError
from quantkit.recipe import Recipe
from quantkit.tokenization import CHUNK, Inputs

__all__ = ["COUNTED_TEXTS", "calibration_batches", "read_inputs", "word_counts"]

COUNTED_TEXTS = 100_000  # that `word_counts` reads, at most; evenly spaced


def read_inputs(path: Path, checkpoint: Path) -> Inputs:
    """One text a line from a UTF-8 file, empty lines left out, as the checkpoint reads it.

    A word labeller's sentences are split at spaces.

    Raises:
        DataError: no such file, not UTF-8, or no text in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(
            f"{path}: no such file. --texts takes a file with one text a line."
        ) from None
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 ({problem.reason}). Convert it first.") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} holds no text. It needs at least one line.")
    return Inputs([text.split() for text in texts] if labels_words(checkpoint) else texts)


def calibration_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    recipe: Recipe,
    max_length: int,
) -> Iterator[Batch]:
    """The recipe's random sample of rows, in batches of one length each: no padding.

    Raises:
        DataError: no rows.
    """
    if not len(inputs):
        raise DataError("There are no texts to calibrate on. 256 training texts do well.")
    generator = np.random.default_rng(recipe.calibration.seed)
    chosen = generator.permutation(len(inputs))[: recipe.calibration.samples].tolist()
    types = takes_token_types(model)
    encoded = encode_unlabelled(
        tokenizer, inputs.take(chosen), head_of(model), max_length, types=types
    )
    for indices in equal_length_batches(encoded.lengths(), 16):
        yield collate(encoded, indices, int(tokenizer.pad_token_id or 0))


def word_counts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs, max_length: int
) -> Tensor:
    """How often each token id occurs in texts as the model reads them: cut, with special tokens.

    Of more than `COUNTED_TEXTS` texts every second, third, ... is read.

    Returns:
        int64 [the tokenizer's reachable rows].
    """
    counts = np.zeros(reachable_rows(tokenizer), np.int64)
    step = max(1, -(-len(inputs) // COUNTED_TEXTS))
    texts = inputs if step == 1 else inputs.take(range(0, len(inputs), step))
    ids = encode_unlabelled(tokenizer, texts, head_of(model), max_length, types=False).ids
    for start in range(0, len(ids), CHUNK):
        rows = [ids[row] for row in range(start, min(start + CHUNK, len(ids)))]
        counts += np.bincount(np.concatenate(rows), minlength=len(counts))
    return torch.from_numpy(counts)
