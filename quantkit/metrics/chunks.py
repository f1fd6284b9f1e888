"""Scores of tagged words: CoNLL's chunks, as `conlleval` finds and counts them.

A tag is `O`, outside every chunk, or a prefix and the chunk's type: `B-PER`, `B-$$$`. The
prefix says begin or inside; E, end, and S, single, are known too. `B` and `I` alone have
one type without a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.heads import Head
from quantkit.metrics.answers import Answers, Cells, Ids, cells
from quantkit.metrics.classification import (
    ClassScores,
    accuracy_statistic,
    class_scores,
    f1_statistic,
    occurring_f1,
    shares,
    tally,
)
from quantkit.metrics.resampling import Statistic

__all__ = ["Spans", "Tags", "per_class", "read_tags", "scores", "spans", "statistics"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tags:
    """What the tags say; every array is [tags].

    kinds       the chunk types, in the order of the tags that name them first
    kind        position of each tag's type in `kinds`; -1 for O
    joins       whether the tag may go on with the chunk of the word before it: I and E
    goes_on     whether the chunk may go on after the tag: B and I
    """

    kinds: tuple[str, ...]
    kind: Ids
    joins: Mask
    goes_on: Mask


@dataclass(frozen=True, eq=False)
class Spans:
    """Chunks of a list of words, ascending; every array is [chunks].

    first, last   positions of a chunk's first and last word
    kind          position of its type
    """

    first: Ids
    last: Ids
    kind: Ids


def read_tags(labels: Sequence[str]) -> Tags:
    """Take the tags apart at their first hyphen.

    Raises:
        ValueError: a tag of another form, which `conlleval` would leave out of every chunk.
    """
    parts = [label.partition("-")[::2] for label in labels]
    for label, (prefix, _) in zip(labels, parts, strict=True):
        if prefix not in ("B", "I", "O", "E", "S"):
            raise ValueError(
                f"{label!r} is no tag of a chunk: tags are O, B-TYPE and I-TYPE. Write "
                f"'B-{label}' where every word is a chunk of its own."
            )
    kinds = tuple(dict.fromkeys(kind for prefix, kind in parts if prefix != "O"))
    positions = [-1 if prefix == "O" else kinds.index(kind) for prefix, kind in parts]
    return Tags(
        kinds,
        np.array(positions, dtype=np.int64),
        np.array([prefix in ("I", "E") for prefix, _ in parts], dtype=np.bool_),
        np.array([prefix in ("B", "I") for prefix, _ in parts], dtype=np.bool_),
    )


def spans(tags: Tags, ids: Ids, rows: Ids) -> Spans:
    """The chunks of the words with the tags `ids` [words] in the rows `rows` [words].

    A word belongs to the chunk of the word before it if its tag joins, that word's chunk
    may go on, both have one type and stand in one row; otherwise it begins a chunk. This
    one condition is `conlleval`'s start_of_chunk and end_of_chunk: I-PER begins a chunk
    after O, after B-LOC and at the start of a row.
    """
    kind = tags.kind[ids]
    joined = np.zeros(len(ids), dtype=np.bool_)
    joined[1:] = tags.joins[ids[1:]] & tags.goes_on[ids[:-1]]
    joined[1:] &= (kind[1:] == kind[:-1]) & (rows[1:] == rows[:-1])
    first = np.flatnonzero((kind >= 0) & ~joined)
    last = np.flatnonzero((kind >= 0) & ~np.roll(joined, -1))  # the first word never joins
    return Spans(first, last, kind[first])


def statistics(head: Head, references: Answers, predictions: Answers) -> dict[str, Statistic]:
    """`chunk_f1` and `accuracy` of words; see `quantkit.metrics.statistics`."""
    found = cells(head, references, predictions)
    outcomes = _outcomes(read_tags(head.labels), found)
    return {
        "chunk_f1": f1_statistic(outcomes, occurring_f1),
        "accuracy": accuracy_statistic(found),
    }


def scores(head: Head, references: Answers, predictions: Answers) -> dict[str, float]:
    """Means over the types that occur, the F1 of all chunks together, accuracy of words."""
    found = cells(head, references, predictions)
    total = _outcomes(read_tags(head.labels), found).sum(0)
    occurring = total[total[:, 1:].sum(1) > 0]
    means: list[Any] = [part.sum() / max(len(occurring), 1) for part in shares(occurring)]
    return {
        "chunk_precision": float(means[0]),
        "chunk_recall": float(means[1]),
        "chunk_f1": float(means[2]),
        "micro_f1": float(shares(total.sum(0))[2]),
        "accuracy": accuracy_statistic(found).value,
    }


def per_class(head: Head, references: Answers, predictions: Answers) -> tuple[ClassScores, ...]:
    """The scores of each chunk type that the head's tags name."""
    tags = read_tags(head.labels)
    outcomes = _outcomes(tags, cells(head, references, predictions))
    return class_scores(tags.kinds, outcomes.sum(0))


def _outcomes(tags: Tags, found: Cells) -> Ids:
    """Hits, references and predictions of each row and type: int64 [rows, types, 3].

    A hit is a predicted chunk with the first word, the last word and the type of a
    reference chunk.
    """
    a = spans(tags, found.references, found.rows)
    b = spans(tags, found.predictions, found.rows)
    _, of_a, of_b = np.intersect1d(a.first, b.first, assume_unique=True, return_indices=True)
    same = (a.last[of_a] == b.last[of_b]) & (a.kind[of_a] == b.kind[of_b])
    sides = [(a.first[of_a[same]], a.kind[of_a[same]]), (a.first, a.kind), (b.first, b.kind)]
    counts = [tally(found.rows[first], kind, found.count, len(tags.kinds)) for first, kind in sides]
    return np.stack(counts, axis=-1)
