"""The part of a tokenizer's vocabulary that a corpus needs, and what it makes of other texts."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from quantkit.tokenization import Inputs
from quantkit.trim.corpus import Change, change, count_same_tokens, seen_tokens
from quantkit.trim.pieces import pieces_of
from quantkit.trim.tokenizer import plain_backend, restrict

__all__ = ["HELD_OUT_TEXTS", "Corpus", "Vocabulary"]

HELD_OUT_TEXTS = 10_000  # that a change is measured on, at most; evenly spaced
TENTH = 10


@dataclass(frozen=True)
class Vocabulary:
    """Some of a tokenizer's tokens: their old ids, ascending, and a tokenizer of them alone."""

    rows: list[int]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Corpus:
    """Texts, and the tokenizer they are read with.

    words   whether a row is a list of words
    fixed   ids that stay whatever the texts hold; the special ones are among them
    """

    tokenizer: PreTrainedTokenizerBase
    inputs: Inputs
    words: bool
    fixed: frozenset[int]

    def vocabulary(self, chosen: Callable[[int], bool] = lambda _: True) -> Vocabulary:
        """What the rows need that are chosen by their numbers; default: all rows.

        Raises:
            CheckpointError: a tokenizer that cannot be restricted; see `restrict`.
        """
        backend = plain_backend(self.tokenizer)
        model, ids = json.loads(backend.to_str())["model"], backend.get_vocab()
        seen = seen_tokens(backend, self.inputs, words=self.words, chosen=chosen)
        needed = {ids[token] for token in pieces_of(model).needed(model, seen) if token in ids}
        rows = sorted(needed | self.fixed)
        return Vocabulary(rows, restrict(self.tokenizer, rows))

    def check(self, vocabulary: Vocabulary) -> int:
        """The number of tokens in the texts, which have to stay the same; see there."""
        return count_same_tokens(*self._both(vocabulary), self.inputs, words=self.words)

    def measured(self, vocabulary: Vocabulary, texts: Inputs) -> Change | None:
        """What a vocabulary makes of other texts; None without any."""
        step = max(1, -(-len(texts) // HELD_OUT_TEXTS))
        part = texts.take(range(0, len(texts), step))
        return change(*self._both(vocabulary), part, words=self.words) if len(part) else None

    def measured_on_a_tenth(self) -> Change | None:
        """What the vocabulary of nine tenths of the texts makes of the others, if there are any."""
        last = TENTH - 1
        tenth = self.inputs.take(range(last, len(self.inputs), TENTH))
        if not len(tenth):
            return None
        return self.measured(self.vocabulary(lambda row: row % TENTH != last), tenth)

    def _both(self, vocabulary: Vocabulary) -> tuple[Tokenizer, Tokenizer, list[int]]:
        return (
            plain_backend(self.tokenizer),
            plain_backend(vocabulary.tokenizer),
            vocabulary.rows,
        )
