"""What a session answers, for each kind of task, and how a model's outputs become it.

Torch-free. Every answer is a frozen dataclass; `to_json` gives it as plain values.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quantkit.heads import Head

__all__ = [
    "Answer",
    "Aspects",
    "Labels",
    "Outputs",
    "Prediction",
    "Span",
    "Value",
    "Vector",
    "Words",
    "answers",
    "decisions",
    "spans",
]

# float32 [rows, outputs]; for words one float32 [words, labels] per row.
Outputs = np.ndarray | list[np.ndarray]

OUTSIDE = "O"  # the tag of a word that belongs to no chunk
_PREFIXES = "BIES"  # of chunk tags, as in B-PERSON, or alone


@dataclass(frozen=True)
class Prediction:
    """The answer to one text: the best label, its probability, and all probabilities."""

    label: str
    score: float
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Labels:
    """The labels of one text that are more probable than not, and all probabilities."""

    labels: tuple[str, ...]
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"labels": list(self.labels), "scores": dict(self.scores)}


@dataclass(frozen=True)
class Aspects:
    """One prediction for each aspect of a text."""

    aspects: dict[str, Prediction]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Value:
    """One number."""

    value: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Span:
    """A chunk of a sentence: its type ("" where tags name none) and its words start to stop - 1."""

    type: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Words:
    """One label for each word of a sentence or passage, its probability, and the chunks."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    spans: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "words": list(self.words),
            "labels": list(self.labels),
            "scores": list(self.scores),
            "spans": [asdict(span) for span in self.spans],
        }


@dataclass(frozen=True)
class Vector:
    """What the encoder makes of a text: the mean over its tokens of the last layer."""

    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"values": list(self.values)}


Answer = Prediction | Labels | Aspects | Value | Words | Vector


def answers(head: Head, outputs: Outputs, sentences: Sequence[Sequence[str]] = ()) -> list[Answer]:
    """One answer for each row of `outputs`; `sentences` are the words that words are said of."""
    if head.kind == "words":
        pairs = zip(sentences, outputs, strict=True)
        return [_words(head, words, logits) for words, logits in pairs]
    return [_answer(head, logits) for logits in outputs]


def decisions(head: Head, outputs: Outputs) -> Outputs:
    """`head.decide` of outputs: one array, or for words one array [words] per row."""
    if isinstance(outputs, list):
        return [head.decide(row) for row in outputs]
    return head.decide(outputs)


def spans(words: Sequence[str], tags: Sequence[str]) -> tuple[Span, ...]:
    """The chunks that the tags of a sentence's words mark, as CoNLL's `conlleval` reads them.

    A chunk begins at B- or S-, where the type changes, and behind O, E- or S-; so I- may
    begin one too. B and I without a type mark chunks of type "". A tag of no such form, as
    a part of speech, is the chunk of its one word.
    """
    starts: list[tuple[str, int]] = []
    ends: list[int] = []
    before = OUTSIDE, ""
    for at, tag in enumerate(tags):
        prefix, kind = _parts(tag)
        fresh = prefix in "BS" or before[0] in (OUTSIDE, "E", "S") or kind != before[1]
        if before[0] != OUTSIDE and (prefix == OUTSIDE or fresh):
            ends.append(at)
        if prefix != OUTSIDE and fresh:
            starts.append((kind, at))
        before = prefix, kind
    if len(ends) < len(starts):
        ends.append(len(tags))
    return tuple(
        Span(kind, start, stop, " ".join(words[start:stop]))
        for (kind, start), stop in zip(starts, ends, strict=True)
    )


def _parts(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, hyphen, kind = tag.partition("-")
    if prefix and prefix in _PREFIXES and (hyphen or not kind):
        return prefix, kind
    return "S", tag


def _answer(head: Head, logits: np.ndarray) -> Answer:
    """The answer of one row's logits [outputs]."""
    if head.kind == "regression":
        return Value(float(head.decide(logits)))
    if head.kind == "features":
        return Vector(tuple(logits.tolist()))
    shares = head.probabilities(logits)
    if head.kind == "aspects":
        each = (_prediction(head.labels, row) for row in shares)
        return Aspects(dict(zip(head.aspects, each, strict=True)))
    if head.kind == "multilabel":
        chosen = np.flatnonzero(head.decide(logits))
        return Labels(tuple(head.labels[at] for at in chosen), _named(head.labels, shares))
    return _prediction(head.labels, shares)


def _prediction(labels: Sequence[str], shares: np.ndarray) -> Prediction:
    best = int(shares.argmax())
    return Prediction(labels[best], float(shares[best]), _named(labels, shares))


def _named(labels: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, shares.tolist(), strict=True))


def _words(head: Head, words: Sequence[str], logits: np.ndarray) -> Words:
    """The answer of one sentence's logits [words, labels]."""
    shares = head.probabilities(logits)
    tags = tuple(head.labels[at] for at in head.decide(logits))
    return Words(tuple(words), tags, tuple(shares.max(-1).tolist()), spans(words, tags))
