"""Chunks: by hand, against seqeval, which counts as conlleval does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from quantkit.heads import Head
from quantkit.metrics import ClassScores, confusion, main_score, per_class, scores
from quantkit.metrics.chunks import read_tags, spans

Sentences = list[list[str]]


def ids_of(head: Head, sentences: Sentences) -> list[np.ndarray]:
    return [np.array([head.labels.index(tag) for tag in row], dtype=int) for row in sentences]


def chunks_of(tags: str) -> list[tuple[str, int, int]]:
    words = tags.split()
    labels = tuple(dict.fromkeys(words))
    read = read_tags(labels)
    (ids,) = ids_of(Head("words", labels), [words])
    found = spans(read, ids, np.zeros(len(ids), dtype=int))
    columns = zip(found.kind, found.first, found.last, strict=True)
    return [(read.kinds[kind], int(first), int(last)) for kind, first, last in columns]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", [("A", 1, 2)]),
        ("B-A B-A I-A", [("A", 0, 0), ("A", 1, 2)]),
        ("I-A I-A O I-A", [("A", 0, 1), ("A", 3, 3)]),  # no B, and a chunk all the same
        ("B-A I-B I-B", [("A", 0, 0), ("B", 1, 2)]),  # the type changes
        ("B I O I B", [("", 0, 1), ("", 3, 3), ("", 4, 4)]),
        ("B-$$$ B-a-b I-a-b", [("$$$", 0, 0), ("a-b", 1, 2)]),
        ("S-A B-A E-A I-A E-A", [("A", 0, 0), ("A", 1, 2), ("A", 3, 4)]),
        ("O O", []),
        ("", []),
    ],
)
def test_chunks_by_hand(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert chunks_of(tags) == expected


HEAD = Head("words", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG"))
GOLD = [["B-PER", "I-PER", "O", "B-LOC"], ["O"], ["B-PER", "O"]]
FOUND = [["B-PER", "O", "O", "B-LOC"], ["I-LOC"], ["I-PER", "O"]]


def test_scores_by_hand() -> None:
    """PER: 1 hit, 2 gold, 2 found. LOC: 1 hit, 1 gold, 2 found. ORG does not occur."""
    sides = ids_of(HEAD, GOLD), ids_of(HEAD, FOUND)
    assert per_class(HEAD, *sides) == (
        ClassScores("PER", 0.5, 0.5, 0.5, 2),
        ClassScores("LOC", 0.5, 1.0, 2 / 3, 1),
        ClassScores("ORG", 0.0, 0.0, 0.0, 0),
    )
    assert scores(HEAD, *sides) == pytest.approx(
        {
            "chunk_precision": 0.5,
            "chunk_recall": 0.75,
            "chunk_f1": (1 / 2 + 2 / 3) / 2,
            "micro_f1": 2 * 2 / (3 + 4),
            "accuracy": 4 / 7,
        }
    )
    assert main_score(HEAD, *sides) == pytest.approx((1 / 2 + 2 / 3) / 2)
    matrix = confusion(HEAD, *sides)
    assert matrix is not None
    assert matrix[0] == [2, 0, 0, 0, 1, 0]
    assert matrix[1] == [0, 1, 1, 0, 0, 0]


def test_a_chunk_ends_with_its_row() -> None:
    """In one row B-PER I-PER would be one chunk; in two rows it is two."""
    apart = ids_of(HEAD, [["B-PER"], ["I-PER"]])
    assert per_class(HEAD, apart, apart)[0].support == 2


@pytest.mark.parametrize("words", [[["O", "O"], ["O"]], [[], []]])
def test_no_chunks_at_all_count_as_0(words: Sentences) -> None:
    sides = ids_of(HEAD, words), ids_of(HEAD, words)
    found = scores(HEAD, *sides)
    accuracy = 1.0 if any(words) else 0.0
    assert found == {**dict.fromkeys(found, 0.0), "accuracy": accuracy}
    outside = Head("words", ("O",))
    assert main_score(outside, *sides) == 0.0
    assert per_class(outside, *sides) == ()


@pytest.mark.parametrize("label", ["NOUN", "PER-B", "X-PER", ""])
def test_what_is_no_tag(label: str) -> None:
    head, answers = Head("words", ("O", label)), [np.array([0, 1])]
    with pytest.raises(ValueError, match=f"'{label}' is no tag of a chunk"):
        main_score(head, answers, answers)


TYPED = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("A", "$$$", "c-d"))]
WITH_ENDS = [*TYPED, *(f"{prefix}-{kind}" for prefix in "ES" for kind in ("A", "$$$"))]
TAGS = {"typed": TYPED, "with ends": WITH_ENDS, "untyped": ["O", "B", "I"]}


def sentences(tags: list[str]) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    """Sentences of pairs of tags, ill-formed ones too."""
    tag = st.sampled_from(tags)
    return st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=9), min_size=1, max_size=9)


@pytest.mark.parametrize("name", TAGS)
@given(data=st.data())
@settings(deadline=None)
def test_agrees_with_seqeval(name: str, data: st.DataObject) -> None:
    rows = data.draw(sentences(TAGS[name]))
    gold, found = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    head = Head("words", tuple(TAGS[name]))
    sides = ids_of(head, gold), ids_of(head, found)
    every = scores(head, *sides)
    assert every["accuracy"] == pytest.approx(accuracy_score(gold, found))
    if not get_entities(gold) + get_entities(found):
        return  # seqeval takes the mean of no types
    options: dict[str, Any] = {"zero_division": 0}
    macro = precision_recall_fscore_support(gold, found, average="macro", **options)
    names = ("chunk_precision", "chunk_recall", "chunk_f1")
    assert [every[name] for name in names] == pytest.approx(macro[:3])
    assert main_score(head, *sides) == pytest.approx(macro[2])
    micro = precision_recall_fscore_support(gold, found, average="micro", **options)
    assert every["micro_f1"] == pytest.approx(micro[2])
    each = precision_recall_fscore_support(gold, found, average=None, **options)
    kinds = sorted({kind for kind, _, _ in get_entities(gold) + get_entities(found)})
    by_name = {row.name: row for row in per_class(head, *sides)}
    for kind, *expected in zip(kinds, *each, strict=True):
        row = by_name["" if kind == "_" else kind]
        assert [row.precision, row.recall, row.f1, row.support] == pytest.approx(expected)
