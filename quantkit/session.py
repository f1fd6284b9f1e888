"""Texts in, answers out: what a session does, whichever engine computes.

Tokenizers and numpy, no torch and no onnxruntime: the model is a `Backend` that is handed in.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from quantkit.answers import Answer, Outputs, answers
from quantkit.errors import DataError
from quantkit.heads import Head
from quantkit.rows import Part, Row, checked_inputs, read_row
from quantkit.tokenization import Inputs, Window, merge_words, tokenize

__all__ = ["Arrays", "Backend", "Session", "token_arrays"]

Arrays = dict[str, np.ndarray]


class Backend(Protocol):
    """What computes: a model's file that is open in one engine."""

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The model's output for a batch; see `Session.run`."""
        ...


class Session:
    """A tokenizer and an open model that belong together; made by `quantkit.load`.

    backend      the open model
    head         what the model answers
    path         of the model's file
    max_length   tokens of a window: longer texts are cut, longer sentences take several
    vocabulary   token ids are below it
    notes        what is to be known of how it was opened
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        head: Head,
        path: Path,
        *,
        max_length: int,
        padding: int,
        notes: Sequence[str] = (),
    ) -> None:
        self.backend = backend
        self._tokenizer = tokenizer
        self._tokenizing = Lock()  # it sets the tokenizer's limits, which all threads share
        self._padding = padding
        self.head = head
        self.path = path
        self.max_length = max_length
        self.notes = tuple(notes)
        self.vocabulary = tokenizer.get_vocab_size()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the head's classes."""
        return self.head.labels

    def predict(
        self,
        texts: Sequence[Part],
        pairs: Sequence[Part] | None = None,
        batch_size: int = 8,
    ) -> list[Answer]:
        """One answer a row, in the order of `texts`; its class depends on the head's kind.

        classification: Prediction; multilabel: Labels; aspects: Aspects; regression: Value;
        words: Words; features: Vector.

        Args:
            texts: strings; for words also lists of words, and strings are split at white space.
            pairs: the other text of each pair; for words the question before each passage.
            batch_size: windows that the model is run on at once.

        Raises:
            DataError: a row is not a text.
        """
        inputs = checked_inputs(texts, pairs, words=self._of_words)
        sentences = inputs.first if self._of_words else ()
        return answers(self.head, self._run_all(inputs, batch_size), sentences)

    def stream(
        self, rows: Iterable[str | Mapping[str, Any]], batch_size: int = 8, chunk: int = 256
    ) -> Iterator[dict[str, Any]]:
        """Answers of any number of rows as JSON values, in order, `chunk` rows in memory.

        A row is a text, or {text, text_pair}, or for words {tokens, question}; the second
        of each and any other key may be absent.

        Raises:
            DataError: a row has no text, after the answers to those before it; the message
                tells its number from 1.
        """
        if isinstance(rows, str | Mapping):
            raise DataError(f"Expected rows; found one {type(rows).__name__}. Pass a list of it.")
        numbered = enumerate(rows, start=1)
        problem: DataError | None = None
        while problem is None:
            part: list[Row] = []
            try:
                for number, row in islice(numbered, chunk):
                    part.append(read_row(row, number, words=self._of_words))
            except DataError as found:  # the rows before it are answered first
                problem = found
            for answer in self._answer(part, batch_size):
                yield answer.to_json()
            if not part and problem is None:
                return
        raise problem

    def outputs(self, inputs: Inputs, batch_size: int = 8) -> Outputs:
        """What the model says of each row, in order.

        Returns:
            float32 [rows, head.outputs]; features: the mean over a row's tokens, float32
            [rows, hidden]; words: for each row float32 [words, labels].

        Raises:
            DataError: a row is not a text.
        """
        checked = checked_inputs(inputs.first, inputs.second, words=self._of_words)
        return self._run_all(checked, batch_size)

    def logits(self, texts: Sequence[str], batch_size: int = 8) -> np.ndarray:
        """float32 [texts, head.outputs] of a model that answers whole texts.

        Raises:
            DataError: a row is not a text, or the model answers words.
        """
        if self._of_words:
            raise DataError(f"{self.path} answers each word, not each text. Use `outputs`.")
        return self._text_outputs(checked_inputs(texts, words=False), batch_size)

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The model's own output for int64 arrays [batch, length], as float32.

        `input_ids`, `attention_mask` (1 token, 0 padding, which is on the right) and
        `token_type_ids`. logits [batch, head.outputs]; words: [batch, length, labels];
        features: the last layer, [batch, length, hidden].
        """
        return self.backend.run(arrays)

    @property
    def _of_words(self) -> bool:
        return self.head.kind == "words"

    def _answer(self, rows: Sequence[Row], batch_size: int) -> list[Answer]:
        """Answers of rows of which some may have a second part and some not."""
        found: dict[int, Answer] = {}
        for paired in (False, True):
            places = [at for at, (_, second) in enumerate(rows) if (second is not None) is paired]
            first = [rows[at][0] for at in places]
            second = [rows[at][1] or "" for at in places] if paired else None
            found |= zip(places, self.predict(first, second, batch_size), strict=True)
        return [found[at] for at in range(len(rows))]

    def _run_all(self, inputs: Inputs, batch_size: int) -> Outputs:
        run = self._word_outputs if self._of_words else self._text_outputs
        return run(inputs, batch_size)

    def _text_outputs(self, inputs: Inputs, batch_size: int) -> np.ndarray:
        windows = self._windows(inputs)
        if not windows:
            return np.empty((0, self.head.outputs), dtype=np.float32)
        order, parts = [], []
        for places, arrays in self._batches(windows, batch_size):
            values = self.run(arrays)
            order += places
            parts.append(_mean(values, arrays) if self.head.kind == "features" else values)
        joined = np.concatenate(parts)
        result = np.empty_like(joined)
        result[order] = joined
        return result

    def _word_outputs(self, inputs: Inputs, batch_size: int) -> list[np.ndarray]:
        nothing = np.empty((0, self.head.outputs), dtype=np.float32)
        filled = [at for at, words in enumerate(inputs.first) if words]
        second = None if inputs.second is None else [inputs.second[at] for at in filled]
        windows = self._windows(Inputs([inputs.first[at] for at in filled], second))
        values = [nothing] * len(windows)
        for places, arrays in self._batches(windows, batch_size):
            for at, logits in zip(places, self.run(arrays), strict=True):
                values[at] = logits
        merged = merge_words([w.row for w in windows], [w.words for w in windows], values)
        result = [nothing] * len(inputs)
        for at, logits in zip(filled, merged, strict=True):
            result[at] = logits
        return result

    def _windows(self, inputs: Inputs) -> list[Window]:
        with self._tokenizing:
            return list(tokenize(self._tokenizer, inputs, self.max_length, words=self._of_words))

    def _batches(
        self, windows: Sequence[Window], batch_size: int
    ) -> Iterator[tuple[list[int], Arrays]]:
        """Batches of windows of similar length, so little padding, and their places."""
        order = sorted(range(len(windows)), key=lambda at: len(windows[at].ids))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            yield places, self._arrays([windows[at] for at in places])

    def _arrays(self, windows: Sequence[Window]) -> Arrays:
        shape = len(windows), max(len(window.ids) for window in windows)
        arrays = {
            "input_ids": np.full(shape, self._padding, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        for row, window in enumerate(windows):
            count = len(window.ids)
            arrays["input_ids"][row, :count] = window.ids
            arrays["attention_mask"][row, :count] = 1
            arrays["token_type_ids"][row, :count] = window.types
        return arrays


def token_arrays(batch: int, length: int, rows: int) -> dict[str, np.ndarray]:
    """Full int64 arrays [batch, length] of seeded token ids below `rows`."""
    ids = np.random.default_rng(0).integers(5, rows, (batch, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def _mean(hidden: np.ndarray, arrays: Arrays) -> np.ndarray:
    """The mean of hidden states [batch, length, hidden] over unmasked tokens."""
    mask = arrays["attention_mask"].astype(np.float32)
    return np.asarray(np.einsum("blh,bl->bh", hidden, mask) / mask.sum(1, keepdims=True))
