import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.answers import (
    Answer,
    Aspects,
    Labels,
    Prediction,
    Span,
    Value,
    Vector,
    Words,
    answers,
    decisions,
    spans,
)
from quantkit.metrics import chunks
from tests.tiny_onnx import HEADS

HALF = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))


def only(found: list[Answer]) -> Answer:
    assert len(found) == 1
    return found[0]


def test_a_classification_is_its_best_label_and_all_probabilities() -> None:
    answer = only(answers(HEADS["classification"], HALF[None]))
    assert isinstance(answer, Prediction)
    assert answer.label == "positive"
    assert answer.score == pytest.approx(0.5)
    assert answer.scores == pytest.approx({"positive": 0.5, "neutral": 0.25, "negative": 0.25})


def test_each_aspect_has_a_prediction_of_its_own() -> None:
    logits = np.array([[0.0, np.log(3.0), np.log(4.0), 0.0]], dtype=np.float32)
    answer = only(answers(HEADS["aspects"], logits))
    assert isinstance(answer, Aspects)
    assert list(answer.aspects) == ["rasa", "harga"]
    assert answer.aspects["rasa"].label == "negative"
    assert answer.aspects["rasa"].score == pytest.approx(0.75)
    assert answer.aspects["harga"].scores == pytest.approx({"positive": 0.8, "negative": 0.2})


def test_labels_are_those_more_probable_than_not() -> None:
    logits = np.array([[np.log(3.0), -np.log(3.0), 1e-3], [-1.0, -1.0, 0.0]], dtype=np.float32)
    some, none = answers(HEADS["multilabel"], logits)
    assert isinstance(some, Labels)
    assert some.labels == ("marah", "takut")
    assert some.scores == pytest.approx({"marah": 0.75, "senang": 0.25, "takut": 0.5}, abs=1e-3)
    assert isinstance(none, Labels)
    assert none.labels == ()


def test_numbers_and_vectors_are_as_the_model_says() -> None:
    rows = np.array([[1.5], [-2.0]], dtype=np.float32)
    assert answers(HEADS["regression"], rows) == [Value(1.5), Value(-2.0)]
    rows = np.array([[1.0, 2.5]], dtype=np.float32)
    assert answers(HEADS["features"], rows) == [Vector((1.0, 2.5))]


def test_words_have_labels_probabilities_and_spans() -> None:
    head = HEADS["words"]
    logits = np.log(np.eye(4, dtype=np.float32) * 6 + 1)[[1, 2, 0, 3]]
    words = ["Joko", "Widodo", "ke", "Solo"]
    answer = only(answers(head, [logits], [words]))
    assert isinstance(answer, Words)
    assert answer.words == tuple(words)
    assert answer.labels == ("B-PER", "I-PER", "O", "B-LOC")
    assert answer.scores == pytest.approx([0.7] * 4)
    assert answer.spans == (Span("PER", 0, 2, "Joko Widodo"), Span("LOC", 3, 4, "Solo"))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", []),
        ("O O", []),
        ("B-A I-A O B-A", [("A", 0, 2), ("A", 3, 4)]),
        ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
        ("I-A I-A", [("A", 0, 2)]),  # a chunk may begin inside
        ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),
        ("O I-A O I-A", [("A", 1, 2), ("A", 3, 4)]),
        ("B-A E-A I-A", [("A", 0, 2), ("A", 2, 3)]),
        ("S-A S-A I-A", [("A", 0, 1), ("A", 1, 2), ("A", 2, 3)]),
        ("B I O I B", [("", 0, 2), ("", 3, 4), ("", 4, 5)]),  # questions' answers, keywords
        ("B-PR-X I-PR-X", [("PR-X", 0, 2)]),
        ("B-$$$ I-$$$", [("$$$", 0, 2)]),
        ("NN NN VB", [("NN", 0, 1), ("NN", 1, 2), ("VB", 2, 3)]),  # no scheme: each word alone
    ],
)
def test_spans_of_hand_worked_tags(tags: str, expected: list[tuple[str, int, int]]) -> None:
    words = [f"kata{at}" for at in range(len(tags.split()))]
    found = spans(words, tags.split())
    assert [(span.type, span.start, span.stop) for span in found] == expected
    assert all(span.text == " ".join(words[span.start : span.stop]) for span in found)


TAGS = ("O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "B", "I")


@given(st.lists(st.sampled_from(range(len(TAGS))), min_size=1, max_size=12))
def test_spans_are_the_chunks_that_are_scored(ids: list[int]) -> None:
    read = chunks.read_tags(TAGS)
    scored = chunks.spans(read, np.array(ids), np.zeros(len(ids), dtype=np.int64))
    expected = [
        (read.kinds[kind], first, last + 1)
        for first, last, kind in zip(scored.first, scored.last, scored.kind, strict=True)
    ]
    found = spans(["kata"] * len(ids), [TAGS[at] for at in ids])
    assert [(span.type, span.start, span.stop) for span in found] == expected


@pytest.mark.parametrize("kind", HEADS)
def test_answers_survive_json(kind: str) -> None:
    head = HEADS[kind]
    logits = np.random.default_rng(0).normal(size=(3, head.outputs or 4)).astype(np.float32)
    words = kind == "words"
    found = answers(head, [logits] if words else logits, [["a", "b", "c"]] if words else ())
    for answer in found:
        values = answer.to_json()
        assert json.loads(json.dumps(values)) == values
        assert list(values) == list(answer.__dataclass_fields__)


def test_decisions_are_taken_row_by_row_for_words() -> None:
    np.testing.assert_array_equal(decisions(HEADS["classification"], HALF[None]), [0])
    rows = [np.eye(4, dtype=np.float32)[[2, 1]], np.empty((0, 4), dtype=np.float32)]
    assert [row.tolist() for row in decisions(HEADS["words"], rows)] == [[2, 1], []]
