"""Cells as a recipe's slot `data` describes them."""

import pytest

from quantkit.data.columns import check_source, columns_of, example_of
from quantkit.errors import DataError
from quantkit.source import Cleaning, Source

WORDS = Source(tokens="w", label="t", question="q")


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        (Source(), ["text", "label"]),
        (Source(text="a", text_pair="b", label="c"), ["a", "b", "c"]),
        (Source(kind="features"), ["text"]),
        (WORDS, ["w", "q", "t"]),
        (Source(tokens="w", kind="words"), ["w", "label"]),
    ],
)
def test_only_the_named_columns_are_read(source: Source, columns: list[str]) -> None:
    check_source(source)
    assert columns_of(source) == columns


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(kind="words"), "kind is words: name the column with tokens"),
        (Source(kind="multilabel", tokens="w"), "kind is multilabel, which has no tokens"),
        (Source(question="q"), "kind is classification, which has no question"),
        (Source(tokens="w", text_pair="b"), "words have a question, not a text_pair"),
        (Source(tokens="w", cleaning=Cleaning()), "cleaning is for texts"),
        (Source(kind="regression", drop_labels=("1",)), "drop_labels is for classification, not"),
        (Source(kind="features", labels=("a",)), "kind is features, which has no labels"),
        (Source(labels=("a", "b", "a")), "labels names one twice: a, b, a"),
    ],
)
def test_slots_that_contradict_each_other(source: Source, message: str) -> None:
    with pytest.raises(DataError, match=f"^data: {message}.*Correct the slot `data`"):
        check_source(source)


@pytest.mark.parametrize(
    ("cell", "label"), [("1", "1"), (1, "1"), (1.5, "1.5"), (True, "True"), (" baik ", "baik")]
)
def test_labels_are_strings(cell: object, label: str) -> None:
    row = example_of("f:2", {"text": "NA", "label": cell}, Source())
    assert (row.where, row.first, row.answer, row.second) == ("f:2", "NA", label, None)


def test_texts_are_cleaned_both_of_a_pair() -> None:
    source = Source(text_pair="b", cleaning=Cleaning())
    row = example_of("f:2", {"text": "A  @x", "b": "#y", "label": "1"}, source)
    assert (row.first, row.second) == ("a", "")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["salah satu", "B"], ["salah satu", "B"]),
        ([1, 0], ["1", "0"]),
        ("['salah satu', 'B']", ["salah satu", "B"]),
        ("[URL] baru  sekali", ["[URL]", "baru", "sekali"]),
        ("[]", []),
        ("", []),
    ],
)
def test_words_are_a_list_or_one_as_text_or_stand_between_spaces(
    cell: object, words: list[str]
) -> None:
    row = example_of("f:2", {"w": cell, "t": cell, "q": cell}, WORDS)
    assert (row.first, row.answer, row.second) == (words, words, words)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("harga, rasa", ["harga", "rasa"]),
        ("harga", ["harga"]),
        ("", []),
        (["a, b"], ["a, b"]),
        ("['a, b', 'c']", ["a, b", "c"]),
        (3, ["3"]),
    ],
)
def test_several_labels_are_a_list_or_stand_between_commas(cell: object, labels: list[str]) -> None:
    row = example_of("f:2", {"text": "x", "label": cell}, Source(kind="multilabel"))
    assert row.answer == labels


@pytest.mark.parametrize(
    ("source", "cells", "message"),
    [
        (Source(), {"text": None, "label": "1"}, "the text is missing"),
        (Source(), {"text": ["a"], "label": "1"}, "the text holds a list, not a text"),
        (Source(), {"text": "a", "label": None}, "the label is missing"),
        (Source(), {"text": "a", "label": " "}, "the label is empty. Add a label"),
        (WORDS, {"w": ["a", None], "t": "O", "q": "b"}, "the w is missing"),
        (WORDS, {"w": "['a', 3]", "t": "O", "q": "b"}, "the column 'w' holds .*not a list of"),
        (WORDS, {"w": "a", "t": {"x": 1}, "q": "b"}, "the t holds a dict, not a text"),
    ],
)
def test_cells_that_cannot_be_used(source: Source, cells: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"^f:2: {message}"):
        example_of("f:2", cells, source)
