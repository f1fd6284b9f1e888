"""Rows to token ids: the one definition that training, calibration and serving share.

Torch-free: it uses the `tokenizers` library and NumPy alone. A text longer than the limit is cut; a
labelled sentence or passage longer than the limit becomes several overlapping windows, and
every word is answered from the window that shows most of its surroundings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from quantkit.errors import DataError

__all__ = ["Inputs", "Window", "merge_words", "tokenize", "tokenize_texts", "tokenize_words"]

OVERLAP = 4  # windows with room for n tokens share n // OVERLAP of them
CHUNK = 1000  # rows handed to the tokenizer at once


@dataclass(frozen=True)
class Inputs:
    """What a model reads: texts or sentences of words, and what stands before or behind.

    first    texts (second: the other text of each pair), or sentences as lists of words
    second   with words: the question, as words, that stands before each passage
    """

    first: Sequence[str] | Sequence[Sequence[str]]
    second: Sequence[str] | Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Sequence[int]) -> "Inputs":
        """Some rows, in the order of their numbers in `rows`."""
        columns: list[Any] = [
            None if column is None else [column[row] for row in rows]
            for column in (self.first, self.second)
        ]
        return Inputs(*columns)


@dataclass(frozen=True)
class Window:
    """The tokens of one row, or of a part of a long one.

    `words` holds, for each token, the number of the word that is answered here, and -1 at
    all other tokens; it is empty for texts, whose answer belongs to the whole.
    """

    row: int
    ids: list[int]
    types: list[int]
    words: list[int]
    cut: bool = False  # whether a text's end was lost


def tokenize(tokenizer: Tokenizer, inputs: Inputs, limit: int, *, words: bool) -> Iterator[Window]:
    """Windows of all rows, in their order; see `tokenize_texts` and `tokenize_words`."""
    return (tokenize_words if words else tokenize_texts)(tokenizer, inputs, limit)


def tokenize_texts(tokenizer: Tokenizer, inputs: Inputs, limit: int) -> Iterator[Window]:
    """One window per text or pair, cut to `limit` tokens, the longer text of a pair first."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, strategy="longest_first")
    for start in range(0, len(inputs), CHUNK):
        chunk: list[object] = list(inputs.first[start : start + CHUNK])
        if inputs.second is not None:
            chunk = list(zip(chunk, inputs.second[start : start + CHUNK], strict=True))
        for at, encoding in enumerate(tokenizer.encode_batch(chunk), start=start):
            yield Window(at, encoding.ids, encoding.type_ids, [], bool(encoding.overflowing))


def tokenize_words(tokenizer: Tokenizer, inputs: Inputs, limit: int) -> Iterator[Window]:
    """The windows of each sentence; the first sub-word of a word carries its answer.

    A word that the tokenizer makes nothing of (a control character) stands as the unknown
    token, so that every word is answered. A question takes at most half of a window's room.

    Raises:
        DataError: a sentence without words, or a limit that leaves no room for any.
    """
    tokenizer.no_padding()  # of a batch, it would make tokens of words that have none
    questions = inputs.second
    room = limit - tokenizer.num_special_tokens_to_add(questions is not None)
    if room < 1:
        raise DataError(f"{limit} tokens leave no room for words. Raise max_length.")
    for start in range(0, len(inputs), CHUNK):
        stop = min(start + CHUNK, len(inputs))
        sentences = [list(words) for words in inputs.first[start:stop]]
        _fill_empty_words(tokenizer, sentences)
        chunk: list[object] = list(sentences)
        if questions is not None:
            heads = [_shortened(tokenizer, list(q), room // 2) for q in questions[start:stop]]
            chunk = list(zip(heads, sentences, strict=True))
        strategy = "longest_first" if questions is None else "only_second"
        tokenizer.enable_truncation(limit, stride=room // OVERLAP, strategy=strategy)
        encodings = tokenizer.encode_batch(chunk, is_pretokenized=True)
        for at, (encoding, words) in enumerate(zip(encodings, sentences, strict=True), start=start):
            if not words:
                raise DataError(f"Row {at + 1} is a sentence without words. Remove the row.")
            yield from _windows(at, encoding, 0 if questions is None else 1)


def merge_words(
    rows: Sequence[int], words: Sequence[Sequence[int] | np.ndarray], values: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Values of windows' tokens as values of rows' words.

    Args:
        rows: for each window, the row it is of, in ascending order from 0.
        words: for each window, `Window.words`.
        values: for each window [tokens, ...]; padding behind the tokens is ignored.

    Returns:
        For each row [words, ...].
    """
    found: list[dict[int, np.ndarray]] = [{} for _ in range(rows[-1] + 1 if rows else 0)]
    for row, numbers, value in zip(rows, words, values, strict=True):
        for place, word in enumerate(numbers):
            if word >= 0:
                found[row][word] = value[place]
    return [np.stack([row[number] for number in sorted(row)]) for row in found]


def _fill_empty_words(tokenizer: Tokenizer, sentences: list[list[str]]) -> None:
    """Put the unknown token where a word has no tokens of its own, in place."""
    tokenizer.no_truncation()
    distinct = sorted({word for words in sentences for word in words})
    encoded = tokenizer.encode_batch(distinct, add_special_tokens=False)
    empty = {word for word, encoding in zip(distinct, encoded, strict=True) if not encoding.ids}
    if not empty:
        return
    unknown = _unknown_token(tokenizer)
    for words in sentences:
        words[:] = [unknown if word in empty else word for word in words]


def _unknown_token(tokenizer: Tokenizer) -> str:
    token = getattr(tokenizer.model, "unk_token", None)
    if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
        return token
    known = (name for name in ("[UNK]", "<unk>") if tokenizer.token_to_id(name) is not None)
    return next(known, ".")


def _shortened(tokenizer: Tokenizer, words: list[str], limit: int) -> list[str]:
    """The first words that fit into `limit` tokens."""
    tokenizer.no_truncation()
    encoding = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
    beyond = [word for word in encoding.word_ids[limit:] if word is not None]
    return words[: min(beyond)] if beyond else words


def _windows(row: int, encoding: Encoding, sequence: int) -> Iterator[Window]:
    """A row's windows; each word belongs to the one where its first token stands most central."""
    parts = [encoding, *encoding.overflowing]
    firsts = _first_tokens(parts, sequence)
    owner: dict[int, tuple[int, int]] = {}  # word -> (tokens of context, part)
    for at, (part, first) in enumerate(zip(parts, firsts, strict=True)):
        places = [n for n, which in enumerate(part.sequence_ids) if which == sequence]
        for word, place in first.items():
            # A window's edge is no loss of context where the sentence itself ends.
            before = place - places[0] if at else len(part.ids)
            after = places[-1] - place if at < len(parts) - 1 else len(part.ids)
            if word not in owner or min(before, after) > owner[word][0]:
                owner[word] = min(before, after), at
    for at, (part, first) in enumerate(zip(parts, firsts, strict=True)):
        words = [-1] * len(part.ids)
        for word, place in first.items():
            if owner[word][1] == at:
                words[place] = word
        if max(words) >= 0:  # else neighbours answer all of its words
            yield Window(row, part.ids, part.type_ids, words)


def _first_tokens(parts: Sequence[Encoding], sequence: int) -> list[dict[int, int]]:
    """For each window, word -> place of its first token, if that stands in this window."""
    starts: dict[int, tuple[int, int]] = {}  # word -> where in it the first token lies
    found: list[dict[int, int]] = []
    for part in parts:
        first: dict[int, int] = {}
        for place, (word, which) in enumerate(zip(part.word_ids, part.sequence_ids, strict=True)):
            if word is None or which != sequence or word in first:
                continue
            # The window in which a word appears first holds its first token; a later window
            # may begin in the middle of that word.
            if starts.setdefault(word, part.offsets[place]) == part.offsets[place]:
                first[word] = place
        found.append(first)
    return found
