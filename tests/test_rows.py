from typing import Any

import pytest

from quantkit.errors import DataError
from quantkit.rows import checked_inputs, read_row
from quantkit.tokenization import Inputs


def test_texts_stay_and_strings_of_words_are_split() -> None:
    assert checked_inputs(["a  b", ""], words=False) == Inputs(["a  b", ""])
    assert checked_inputs(["a"], ["b c"], words=False) == Inputs(["a"], ["b c"])
    assert checked_inputs(["a  b\tc", ["d e"], ""], words=True) == Inputs(
        [["a", "b", "c"], ["d e"], []]
    )
    assert checked_inputs([["a"]], ["b c"], words=True) == Inputs([["a"]], [["b", "c"]])


@pytest.mark.parametrize(
    ("words", "texts", "pairs", "message"),
    [
        (False, ["enak", None], None, r"Row 2 is a NoneType \(None\), not a text\."),
        (False, [3.5], None, "Row 1 is a float"),
        (False, [b"enak"], None, "Row 1 is a bytes"),
        (False, [["enak"]], None, "Row 1 is a list"),
        (False, "enak", None, r"the one text 'enak'\. Pass \[text\]"),
        (False, ["enak"], [None], "Row 1 is a NoneType"),
        (False, ["enak"], ["a", "b"], "1 texts and 2 pairs"),
        (False, ["\ud800"], None, "Row 1 holds a character"),
        (True, [["enak", 3]], None, "Row 1, word 2 is a int"),
        (True, [None], None, "not a text or a list of words"),
    ],
)
def test_what_is_not_a_text_is_named(
    words: bool,
    texts: Any,  # noqa: ANN401
    pairs: Any,  # noqa: ANN401
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        checked_inputs(texts, pairs, words=words)


@pytest.mark.parametrize(
    ("row", "words", "expected"),
    [
        ("a b", False, ("a b", None)),
        ("a b", True, (["a", "b"], None)),
        ({"text": "a", "id": 3}, False, ("a", None)),
        ({"text": "a", "text_pair": "b"}, False, ("a", "b")),
        ({"text": "a", "text_pair": None}, False, ("a", None)),
        ({"text": "a", "text_pair": ""}, False, ("a", "")),
        ({"tokens": ["a b", "c"], "question": "d e"}, True, (["a b", "c"], ["d", "e"])),
        ({"text": "a b", "question": ["c"]}, True, (["a", "b"], ["c"])),
    ],
)
def test_rows_of_a_stream_are_read(row: Any, words: bool, expected: object) -> None:  # noqa: ANN401
    assert read_row(row, 1, words=words) == expected


@pytest.mark.parametrize(
    ("row", "words", "message"),
    [
        ({"teks": "enak"}, False, "Row 6 has no text; found teks"),
        ({}, True, "Row 6 has no tokens or text; found nothing"),
        ({"text": None}, False, "Row 6, text is a NoneType"),
        ({"text": "enak", "text_pair": 3}, False, "Row 6, text_pair is a int"),
        ({"tokens": ["a", None]}, True, "Row 6, tokens, word 2 is a NoneType"),
        (7, False, "Row 6 is a int"),
    ],
)
def test_a_row_without_a_text_is_named(
    row: Any,  # noqa: ANN401
    words: bool,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        read_row(row, 6, words=words)
