"""What the parity gate reads: seeded token ids at many shapes, and sentences."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

__all__ = ["Arrays", "gate_batches", "sentence_batches"]

Arrays = dict[str, np.ndarray]

BATCH = 16  # sentences


def gate_batches(
    rows: int,
    max_length: int,
    *,
    pad_token_id: int = 0,
    sentences: Sequence[Arrays] = (),
    seed: int = 0,
) -> list[Arrays]:
    """Seeded token ids below `rows`: batches 1, 3, 8 x three lengths, full and padded.

    `pad_token_id` stands at padded places and nowhere else, since RoBERTa's positions depend
    on it. `sentences` are appended as they are. The longest batches have `max_length` tokens,
    at most 128.
    """
    generator = np.random.default_rng(seed)
    longest = min(max_length, 128)
    lengths = sorted({min(8, longest), min(max(8, longest // 4), longest), longest})
    batches = []
    for batch in (1, 3, 8):
        for length in lengths:
            for padded in (False, True):
                ids = generator.integers(0, rows - 1, (batch, length))
                ids += ids >= pad_token_id
                counts = generator.integers(2, length + 1, batch) if padded else [length] * batch
                mask = (np.arange(length)[None, :] < np.asarray(counts)[:, None]).astype(np.int64)
                types = (np.arange(length)[None, :] > length // 2) * mask
                batches.append(_arrays(ids, mask, types, pad_token_id))
    return [*batches, *sentences]


def sentence_batches(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    pad_token_id: int = 0,
) -> list[Arrays]:
    """Padded batches of 16 texts as int64 arrays."""
    batches = []
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer(
            list(texts[start : start + BATCH]),
            truncation=True,
            max_length=max_length,
            padding=True,
            return_token_type_ids=True,
            return_tensors="np",
        )
        ids, mask, types = (
            encoded[name].astype(np.int64)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        batches.append(_arrays(ids, mask, types, pad_token_id))
    return batches


def _arrays(ids: np.ndarray, mask: np.ndarray, types: np.ndarray, pad_token_id: int) -> Arrays:
    padded = np.where(mask == 1, ids, pad_token_id)
    return {"input_ids": padded, "attention_mask": mask, "token_type_ids": types}
