"""Rows to padded batches, and the three orders in which rows are drawn."""

import hashlib
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quantkit.errors import CheckpointError, DataError
from quantkit.heads import Head
from quantkit.ragged import Ragged, RaggedWriter
from quantkit.tokenization import Inputs, merge_words, tokenize

__all__ = [
    "IGNORED",
    "Encoded",
    "References",
    "backend_of",
    "bucketed_batches",
    "check_rows",
    "collate",
    "encode",
    "encode_unlabelled",
    "equal_length_batches",
    "ordered_batches",
]

IGNORED = -100  # label of a token that has none; torch's losses leave it out

References = NDArray[np.int64] | NDArray[np.float64] | Sequence[NDArray[np.int64]]
Labels = NDArray[np.int64] | NDArray[np.float64] | Ragged


@dataclass(frozen=True)
class Encoded:
    """Tokenized rows, not padded. A long sentence is several windows, one after the other."""

    head: Head
    ids: Ragged  # int32, a row per window
    types: Ragged | None  # int8; None: the model takes none
    # One label per window: class id, ids [aspects] or [labels], value; words: one per token.
    labels: Labels
    sources: NDArray[np.int64]  # [windows]: the dataset's row, in ascending order
    words: Ragged | None  # int32: number of the word a token answers for, or -1
    cut: int = 0  # texts that lost their end to the limit

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window."""
        return self.ids.lengths()

    def references(self) -> References:
        """The labels of the dataset's rows, as `metrics` takes them."""
        if isinstance(self.labels, Ragged):
            return self.by_row([self.labels[window] for window in range(len(self))])
        return self.labels

    def by_row(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Values of each window's tokens [tokens, ...] as values of each row's words."""
        if self.words is None:
            raise ValueError("texts have no words to gather values of")
        words = [self.words[window] for window in range(len(self))]
        return merge_words(self.sources.tolist(), words, values)

    def count(self, indices: Sequence[int]) -> int:
        """How many labels windows `indices` hold: what a mean loss over them divides by."""
        if isinstance(self.labels, Ragged):
            return sum(int((self.labels[index] != IGNORED).sum()) for index in indices)
        return len(indices) * int(np.prod(self.labels.shape[1:], dtype=np.int64))

    def digest(self) -> str:
        """A hash of all that training sees."""
        labels = self.labels
        parts = [self.ids.digest(), "" if self.types is None else self.types.digest()]
        parts.append(labels.digest() if isinstance(labels, Ragged) else _hash(labels))
        return "/".join(parts)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    head: Head,
    references: References,
    max_length: int,
    *,
    types: bool = True,
) -> Encoded:
    """Tokenize rows with the special tokens, at most `max_length` tokens in a window.

    Args:
        tokenizer: a fast one.
        inputs: texts, or sentences of words.
        head: the task.
        references: the labels of the rows, as `metrics` takes them.
        max_length: tokens; longer texts are cut, longer sentences become several windows.
        types: whether the model takes token types.

    Raises:
        CheckpointError: a tokenizer without a `tokenizers` backend.
        DataError: the numbers of rows and labels differ.
    """
    if len(inputs) != len(references):
        raise DataError(
            f"There are {len(inputs)} rows and {len(references)} labels. Every row needs one: "
            f"check the columns of the dataset."
        )
    labelled = head.kind == "words"
    ids, kinds, words = RaggedWriter(np.int32), RaggedWriter(np.int8), RaggedWriter(np.int32)
    sources, cut = array("q"), 0
    for window in tokenize(backend_of(tokenizer), inputs, max_length, words=labelled):
        ids.add(window.ids)
        kinds.add(window.types)
        words.add(window.words)
        sources.append(window.row)
        cut += window.cut
    rows = np.frombuffer(sources, np.int64)
    numbers = words.finish()
    labels: Any = np.asarray(references) if not labelled else None
    if labelled:
        labels = Ragged.of(_token_labels(numbers, rows, references), np.int32)
    return Encoded(
        head,
        ids.finish(),
        kinds.finish() if types else None,
        labels,
        rows,
        numbers if labelled else None,
        cut,
    )


def encode_unlabelled(
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    head: Head,
    max_length: int,
    *,
    types: bool = True,
) -> Encoded:
    """`encode` for rows whose labels do not matter: all of them are 0."""
    zeros: References = np.zeros(len(inputs), np.int64)
    if head.kind == "words":
        zeros = [np.zeros(len(words), np.int64) for words in inputs.first]
    return encode(tokenizer, inputs, head, zeros, max_length, types=types)


def check_rows(**splits: Encoded) -> None:
    """Check that each split has rows, and that the labels are the head's.

    Raises:
        DataError: names the split and the first label outside.
    """
    for split, encoded in splits.items():
        if not len(encoded):
            raise DataError(f"The {split} split has no rows. Fine-tuning needs at least one.")
        if encoded.head.kind in ("regression", "features"):
            continue
        classes = 2 if encoded.head.kind == "multilabel" else len(encoded.head.labels)
        for labels in _label_rows(encoded):
            outside = labels[((labels < 0) & (labels != IGNORED)) | (labels >= classes)]
            if len(outside):
                raise DataError(
                    f"The {split} split has label {outside[0]}, and with {classes} classes "
                    f"labels are 0 to {classes - 1}. Check the labels of the dataset."
                )


def _label_rows(encoded: Encoded) -> Iterator[np.ndarray]:
    """All labels, flat, in pieces."""
    if isinstance(encoded.labels, Ragged):
        yield from (encoded.labels[window] for window in range(len(encoded)))
    else:
        yield encoded.labels.ravel()


def collate(encoded: Encoded, indices: Sequence[int], pad_token_id: int) -> dict[str, Tensor]:
    """Windows `indices` as one batch, padded on the right to its longest.

    Returns:
        int64 `input_ids`, `attention_mask` (1 token, 0 padding) and, where the model takes
        them, `token_type_ids` [windows, tokens]; and `labels`: [windows], [windows, aspects],
        or for words [windows, tokens] with `IGNORED` where a token has none.
    """
    ids = [encoded.ids[index] for index in indices]
    batch = {
        "input_ids": _padded(ids, pad_token_id),
        "attention_mask": _padded([np.ones(len(row), np.int64) for row in ids], 0),
    }
    if encoded.types is not None:
        batch["token_type_ids"] = _padded([encoded.types[index] for index in indices], 0)
    if isinstance(encoded.labels, Ragged):
        batch["labels"] = _padded([encoded.labels[index] for index in indices], IGNORED)
    else:
        batch["labels"] = torch.from_numpy(encoded.labels[list(indices)])
    return batch


def bucketed_batches(
    lengths: Sequence[int] | NDArray[np.int64],
    batch_size: int,
    seed: int,
    epoch: int,
    pool: int = 50,
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


def ordered_batches(lengths: Sequence[int] | NDArray[np.int64], batch_size: int) -> list[list[int]]:
    """Every row once, sorted by length: the least padding, for evaluation."""
    return _cut(_by_length(lengths), batch_size)


def equal_length_batches(
    lengths: Sequence[int] | NDArray[np.int64], batch_size: int
) -> list[list[int]]:
    """Every row once, in batches without any padding, for calibration.

    A batch has at most `batch_size` rows, and all of them have the same length.
    """
    batches: list[list[int]] = []
    for _, rows in groupby(_by_length(lengths), key=lengths.__getitem__):
        batches += _cut(rows, batch_size)
    return batches


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the Rust tokenizer: truncation set on it must not reach the saved files.

    Raises:
        CheckpointError: a tokenizer without one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CheckpointError(
            f"The tokenizer is a {type(tokenizer).__name__} without a tokenizer.json. Convert it "
            f"to a fast tokenizer, which sessions need too."
        )
    return Tokenizer.from_str(backend.to_str())


def _token_labels(
    words: Ragged, sources: NDArray[np.int64], references: References
) -> Iterator[NDArray[np.int64]]:
    """For each window, the label of the word that a token answers for, or `IGNORED`."""
    for window, row in enumerate(sources):
        numbers = words[window]
        yield np.where(numbers < 0, IGNORED, np.asarray(references[row])[numbers])


def _by_length(lengths: Sequence[int] | NDArray[np.int64]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def _cut(rows: Iterable[int], size: int) -> list[list[int]]:
    rows = list(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _padded(rows: Sequence[NDArray[np.integer]], filler: int) -> Tensor:
    """Integers [rows, longest] with `filler` behind the shorter rows."""
    result = np.full((len(rows), max(map(len, rows))), filler, np.int64)
    for at, row in enumerate(rows):
        result[at, : len(row)] = row
    return torch.from_numpy(result)


def _hash(values: NDArray[np.generic]) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
