"""What cleaning removes from a tweet, and what it leaves."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.data.cleaning import STOP_WORDS, clean
from quantkit.source import Cleaning

NOTHING = Cleaning(**{field.name: False for field in fields(Cleaning)})
TWEET = "RT @KPU_ID: Ayo  ke TPS!\nhttps://kpu.go.id/x?a=1 #Pemilu2024 www.kpu.go.id @a_b"


def test_everything() -> None:
    assert clean(TWEET, Cleaning()) == "ayo ke tps!"
    assert clean(TWEET, Cleaning(stop_words=True)) == "ayo tps!"
    assert clean(TWEET, NOTHING) == TWEET


@pytest.mark.parametrize(
    ("wanted", "text", "cleaned"),
    [
        ("lower", "Ayo KE", "ayo ke"),
        ("urls", "a http://t.co/x,b HTTPS://y c", "a     c"),
        ("users", "a @b: c@d", "a   c "),
        ("users", "a @ b", "a @ b"),
        ("hashtags", "a #satu#dua b # 3", "a    b # 3"),
        ("retweets", "RT @a: b RT c", " @a: b RT c"),
        ("retweets", "  RT : b", " b"),
        ("retweets", "RT 05 RW 02 banjir", "RT 05 RW 02 banjir"),
        ("retweets", "RTX baru", "RTX baru"),
        ("spaces", " a \n\t b\u2028c ", "a b c"),
        ("stop_words", "Yang ini tidak enak", "tidak enak"),
        ("duplicates", " A ", " A "),
    ],
)
def test_each_removal_alone(wanted: str, text: str, cleaned: str) -> None:
    assert clean(text, replace(NOTHING, **{wanted: True})) == cleaned


@pytest.mark.parametrize("text", ["", "@a #b http://c", "RT @a:", "  \n"])
def test_nothing_may_be_left(text: str) -> None:
    assert clean(text, Cleaning()) == ""


def test_negations_are_no_stop_words() -> None:
    assert STOP_WORDS.isdisjoint({"tidak", "bukan", "belum", "jangan", "kurang", "tanpa", "tak"})
    assert {"yang", "dan", "di"} <= STOP_WORDS
    assert all(word == word.lower() for word in STOP_WORDS)


@given(st.text(alphabet="aB @#:/.RTRhtps\n1", max_size=40))
def test_a_clean_text_is_in_one_line_and_has_no_more_words(text: str) -> None:
    cleaned = clean(text, Cleaning())
    assert cleaned == " ".join(cleaned.lower().split())
    assert len(cleaned) <= len(text)
