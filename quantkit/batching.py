"""Texts to padded batches, and the three orders in which rows are drawn."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quantkit.errors import DataError

__all__ = [
    "Encoded",
    "bucketed_batches",
    "check_rows",
    "collate",
    "encode",
    "equal_length_batches",
    "ordered_batches",
]


@dataclass(frozen=True)
class Encoded:
    """Tokenized texts, truncated but not padded: one list per text and one label."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.input_ids]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[int],
    max_length: int,
) -> Encoded:
    """Tokenize with the special tokens; longer texts are cut to `max_length` tokens.

    Raises:
        DataError: the numbers of texts and labels differ.
    """
    if len(texts) != len(labels):
        raise DataError(
            f"There are {len(texts)} texts and {len(labels)} labels. Every text needs one label: "
            f"check the columns of the dataset."
        )
    if not texts:
        return Encoded([], [], [])
    rows = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    return Encoded(rows["input_ids"], rows["token_type_ids"], list(labels))


def check_rows(classes: int, **splits: Encoded) -> None:
    """Check that each split has rows, and that their labels are 0 to `classes` - 1.

    Raises:
        DataError: names the split and the first label outside.
    """
    for split, encoded in splits.items():
        if not len(encoded):
            raise DataError(f"The {split} split has no rows. Fine-tuning needs at least one.")
        outside = sorted({label for label in encoded.labels if not 0 <= label < classes})
        if outside:
            raise DataError(
                f"The {split} split has label {outside[0]}, and with {classes} classes labels "
                f"are 0 to {classes - 1}. Check the labels of the dataset."
            )


def collate(encoded: Encoded, indices: Sequence[int], pad_token_id: int) -> dict[str, Tensor]:
    """Rows `indices` as one batch, padded on the right to its longest row.

    Returns:
        int64 `input_ids`, `attention_mask` (1 token, 0 padding) and `token_type_ids`
        [rows, tokens], and `labels` [rows].
    """
    ids = [encoded.input_ids[index] for index in indices]
    types = [encoded.token_type_ids[index] for index in indices]
    return {
        "input_ids": _padded(ids, pad_token_id),
        "attention_mask": _padded([[1] * len(row) for row in ids], 0),
        "token_type_ids": _padded(types, 0),
        "labels": torch.tensor([encoded.labels[index] for index in indices], dtype=torch.int64),
    }


def bucketed_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, pool: int = 50
) -> list[list[int]]:
    """Random batches of rows of similar length, for training with little padding.

    The rows are shuffled and cut into pools of `pool` batches; each pool is sorted by length
    and cut into batches, which are shuffled. Every row comes once. The result depends on the
    arguments only, so that a resumed run can skip the batches it has done.
    """
    # A string seed is hashed by SHA-512, the same way in every process and for any integers.
    generator = random.Random(f"{seed}/{epoch}")
    rows = list(range(len(lengths)))
    generator.shuffle(rows)
    batches: list[list[int]] = []
    for rows_of_pool in _cut(rows, pool * batch_size):
        batches += _cut(sorted(rows_of_pool, key=lengths.__getitem__), batch_size)
    generator.shuffle(batches)
    return batches


def ordered_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, sorted by length: the least padding, for evaluation."""
    return _cut(_by_length(lengths), batch_size)


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, in batches without any padding, for calibration.

    A batch has at most `batch_size` rows, and all of them have the same length.
    """
    batches: list[list[int]] = []
    for _, rows in groupby(_by_length(lengths), key=lengths.__getitem__):
        batches += _cut(rows, batch_size)
    return batches


def _by_length(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def _cut(rows: Iterable[int], size: int) -> list[list[int]]:
    rows = list(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    """Integers [rows, longest] with `filler` behind the shorter rows."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], dtype=torch.int64)
