from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quantkit.batching import encode
from quantkit.data.tokenizer import train_wordpiece
from quantkit.errors import CheckpointError, DataError
from quantkit.tokenization import (
    CHUNK,
    OVERLAP,
    Inputs,
    Window,
    merge_words,
    tokenize,
    tokenize_texts,
    tokenize_words,
)
from tests.training import CLASSES, byte_level_tokenizer

SYLLABLES = ["ma", "kan", "an", "e", "nak", "ti", "dak", "se", "kali"]
PRETRAINED = train_wordpiece([" ".join(SYLLABLES)], vocab_size=60)
WORDPIECE = Tokenizer.from_str(PRETRAINED.backend_tokenizer.to_str())
BYTE_LEVEL: Tokenizer = byte_level_tokenizer().backend_tokenizer
TOKENIZERS = {"wordpiece": WORDPIECE, "byte-level": BYTE_LEVEL}

# Words of one to many tokens, with spaces, and of which a tokenizer makes nothing.
VISIBLE = st.lists(st.sampled_from([*SYLLABLES, " ", "😀"]), min_size=1, max_size=5).map(
    lambda parts: "a" + "".join(parts)
)
WORD = st.one_of(
    VISIBLE,
    st.sampled_from(["", "\u200b", " ", "\t", "di rumah", "😀", "[SEP]", "</s>", "Makan!?"]),
    st.text(max_size=4).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)),
)
SENTENCE = st.lists(WORD, min_size=1, max_size=40)
QUESTIONS = st.one_of(st.none(), st.lists(WORD, max_size=25))
NAMES = st.sampled_from(sorted(TOKENIZERS))


def inputs_of(sentence: Sequence[str], question: Sequence[str] | None) -> Inputs:
    return Inputs([list(sentence)], None if question is None else [list(question)])


def special(tokenizer: Tokenizer, *, pair: bool) -> int:
    return int(tokenizer.num_special_tokens_to_add(pair))


def id_of(letter: str) -> int:
    found = WORDPIECE.token_to_id(letter)
    assert found is not None
    return found


def first_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """The first token of each word, encoded alone; the unknown one where it has none."""
    tokenizer.no_truncation()
    unknown = 1 if tokenizer is WORDPIECE else 3
    alone = [
        tokenizer.encode([word], is_pretokenized=True, add_special_tokens=False).ids
        for word in words
    ]
    return [ids[0] if ids else unknown for ids in alone]


@settings(deadline=None)
@given(NAMES, SENTENCE, QUESTIONS, st.integers(8, 32))
def test_every_word_is_answered_once_at_its_first_token_and_no_window_is_too_long(
    name: str, sentence: list[str], question: list[str] | None, limit: int
) -> None:
    tokenizer = TOKENIZERS[name]
    windows = list(tokenize_words(tokenizer, inputs_of(sentence, question), limit))
    assert all(len(window.ids) <= limit for window in windows)
    assert all(len(w.ids) == len(w.types) == len(w.words) for w in windows)
    answered = [
        (word, window.ids[place])
        for window in windows
        for place, word in enumerate(window.words)
        if word >= 0
    ]
    assert sorted(answered) == list(enumerate(first_tokens(tokenizer, sentence)))
    assert all(max(window.words) >= 0 for window in windows)
    assert {(window.row, window.cut) for window in windows} == {(0, False)}


def context(places: list[tuple[int, int]], total: int, first: int) -> list[int]:
    """Tokens of the sentence at each window's sides of token `first`; -1: it is not inside.

    `places` are the windows' ranges in the sentence of `total` tokens. Where the sentence
    itself ends, no window could show more.
    """
    found = []
    for start, stop in places:
        sides = [first - start if start else total, stop - 1 - first if stop < total else total]
        found.append(min(sides) if start <= first < stop else -1)
    return found


@settings(deadline=None)
@given(NAMES, st.lists(VISIBLE, min_size=1, max_size=40), st.integers(8, 24))
def test_a_word_is_answered_in_the_window_that_shows_most_around_it(
    name: str, sentence: list[str], limit: int
) -> None:
    tokenizer = TOKENIZERS[name]
    tokenizer.no_truncation()
    whole = tokenizer.encode(sentence, is_pretokenized=True, add_special_tokens=False)
    room = limit - special(tokenizer, pair=False)
    steps = range(0, max(1, len(whole) - room // OVERLAP), room - room // OVERLAP)
    places = [(start, min(start + room, len(whole))) for start in steps]
    expected: dict[tuple[int, int], set[int]] = {place: set() for place in places}
    for word in range(len(sentence)):
        around = context(places, len(whole), whole.word_ids.index(word))
        expected[places[around.index(max(around))]].add(word)
    windows = list(tokenize_words(tokenizer, Inputs([sentence]), limit))
    content = [window.ids[1:-1] for window in windows]
    assert content == [whole.ids[slice(*place)] for place in places if expected[place]]
    words = [{word for word in window.words if word >= 0} for window in windows]
    assert words == [expected[place] for place in places if expected[place]]


def test_windows_by_hand() -> None:
    """Nine words of one token, windows with room for 6: tokens 0 to 5, and from 5 to 8."""
    ids = [id_of(letter) for letter in "makndtsel"]
    windows = list(tokenize_words(WORDPIECE, Inputs([list("makndtsel")]), 8))
    assert windows == [
        # Word 5 has no neighbour behind it in the first window, and none before in the second.
        Window(0, [2, *ids[:6], 3], [0] * 8, [-1, 0, 1, 2, 3, 4, 5, -1]),
        Window(0, [2, *ids[5:], 3], [0] * 6, [-1, -1, 6, 7, 8, -1]),
    ]


def test_a_question_stands_before_every_window_by_hand() -> None:
    """Of 10 tokens 3 are special, and 2 the question's; windows have room for 5, share 1."""
    a, b, c = (id_of(letter) for letter in "mak")
    inputs = Inputs([list("mmmmmmm"), ["a"]], [["a", "k"], ["k"]])
    assert list(tokenize_words(WORDPIECE, inputs, 10)) == [
        Window(0, [2, b, c, 3, *[a] * 5, 3], [0] * 4 + [1] * 6, [-1] * 4 + [0, 1, 2, 3, 4, -1]),
        Window(0, [2, b, c, 3, *[a] * 3, 3], [0] * 4 + [1] * 4, [-1] * 5 + [5, 6, -1]),
        Window(1, [2, c, 3, b, 3], [0, 0, 0, 1, 1], [-1, -1, -1, 0, -1]),
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_question_takes_at_most_half_of_the_room(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    room = 32 - special(tokenizer, pair=True)
    for question in (["makan"] * 10_000, ["tidak", "x" * 5000], []):
        windows = list(tokenize_words(tokenizer, inputs_of(["enak"] * 50, question), 32))
        (kept,) = {tuple(w.ids[: w.ids.index(windows[0].ids[-1])]) for w in windows}
        taken = len(kept) - 1  # behind the first special token
        assert taken <= room // 2
        tokenizer.no_truncation()
        asked = tokenizer.encode(question[:30], is_pretokenized=True, add_special_tokens=False)
        assert list(kept[1:]) == asked.ids[:taken]
        assert sorted(n for w in windows for n in w.words if n >= 0) == list(range(50))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_sentence_of_10_000_words_is_answered_whole(name: str) -> None:
    words = [f"{a}{b}" for a in SYLLABLES for b in SYLLABLES] * 124
    windows = list(tokenize_words(TOKENIZERS[name], Inputs([words]), 128))
    answered = [word for window in windows for word in window.words if word >= 0]
    assert sorted(answered) == list(range(10_044))


def test_rows_keep_their_numbers_across_chunks() -> None:
    texts = ["enak", "tidak"] * (CHUNK // 2) + ["sekali"]
    assert [w.row for w in tokenize_texts(WORDPIECE, Inputs(texts), 8)] == list(range(CHUNK + 1))
    sentences = [[text] * 4 for text in texts]
    found = list(tokenize_words(WORDPIECE, Inputs(sentences, sentences), 12))
    assert sorted({w.row for w in found}) == list(range(CHUNK + 1))
    assert [w.row for w in found] == sorted(w.row for w in found)
    alone = tokenize_words(WORDPIECE, Inputs(sentences[-1:], sentences[-1:]), 12)
    assert [w.ids for w in found if w.row == CHUNK] == [w.ids for w in alone]


def test_a_sentence_without_words_and_a_limit_without_room_are_refused() -> None:
    with pytest.raises(DataError, match="Row 2 is a sentence without words"):
        list(tokenize_words(WORDPIECE, Inputs([["enak"], []]), 8))
    with pytest.raises(DataError, match="4 tokens leave no room for words"):
        list(tokenize_words(BYTE_LEVEL, Inputs([["enak"]], [["apa"]]), 4))
    assert len(list(tokenize_words(BYTE_LEVEL, Inputs([["enak"]], [["apa"]]), 5))) == 1


def test_texts_are_cut_and_say_so() -> None:
    texts = ["m a", "m a k a n", "m a k a n a n", "", "makan " * 10_000]
    windows = list(tokenize_texts(WORDPIECE, Inputs(texts), 7))
    assert [len(window.ids) for window in windows] == [4, 7, 7, 2, 7]
    assert [window.cut for window in windows] == [False, False, True, False, True]
    assert all(window.ids[0] == 2 and window.ids[-1] == 3 for window in windows)
    assert [window.words for window in windows] == [[]] * 5
    assert [window.row for window in windows] == [0, 1, 2, 3, 4]


# Tokens of the texts of a pair and of what is kept of them, with room for 6.
PAIRS = [((2, 3), (2, 3)), ((3, 3), (3, 3)), ((8, 2), (4, 2)), ((1, 9), (1, 5)), ((8, 9), (3, 3))]


@pytest.mark.parametrize(("lengths", "kept"), PAIRS)
def test_of_a_pair_the_longer_text_is_cut_first(
    lengths: tuple[int, int], kept: tuple[int, int]
) -> None:
    first, second = " ".join("m" * lengths[0]), " ".join("a" * lengths[1])
    (window,) = tokenize_texts(WORDPIECE, Inputs([first], [second]), 9)
    m, a = id_of("m"), id_of("a")
    assert window.ids == [2, *[m] * kept[0], 3, *[a] * kept[1], 3]
    assert window.types == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)
    assert window.cut == (lengths != kept)


def test_tokenize_chooses_by_what_the_task_answers() -> None:
    assert [w.words for w in tokenize(WORDPIECE, Inputs(["enak"]), 8, words=False)] == [[]]
    (window,) = tokenize(WORDPIECE, Inputs([["enak"]]), 8, words=True)
    assert 0 in window.words


def test_a_space_before_each_word_is_what_byte_level_tokenizers_need() -> None:
    spaced: Tokenizer = byte_level_tokenizer(spaced=True).backend_tokenizer
    (window,) = tokenize_words(spaced, Inputs([["enak", "sekali"]]), 16)
    spaced.no_truncation()
    assert window.ids == spaced.encode("enak sekali").ids
    (other,) = tokenize_words(BYTE_LEVEL, Inputs([["enak", "sekali"]]), 16)
    assert other.ids != window.ids


def test_merge_words_by_hand() -> None:
    rows, words = [0, 0, 1], [[-1, 0, 1, -1], [-1, -1, 2], [-1, 0]]
    values = [np.array([[9, 9], [1, 2], [3, 4], [9, 9]]), np.array([[9, 9], [9, 9], [5, 6]])]
    values.append(np.array([[9, 9], [7, 8], [9, 9]]))  # with a row of padding
    found = merge_words(rows, words, values)
    assert [row.tolist() for row in found] == [[[1, 2], [3, 4], [5, 6]], [[7, 8]]]
    assert merge_words([], [], []) == []


@settings(deadline=None)
@given(NAMES, st.lists(SENTENCE, min_size=1, max_size=4), st.integers(8, 16))
def test_merge_words_puts_windows_together_again(
    name: str, sentences: list[list[str]], limit: int
) -> None:
    tokenizer = TOKENIZERS[name]
    windows = list(tokenize_words(tokenizer, Inputs(sentences), limit))
    values = [np.array(window.ids) for window in windows]
    found = merge_words([w.row for w in windows], [w.words for w in windows], values)
    expected = [first_tokens(tokenizer, sentence) for sentence in sentences]
    assert [row.tolist() for row in found] == expected


@pytest.mark.parametrize("question", [None, ["tidak", "\u200b"]])
@pytest.mark.parametrize("padding", [{}, {"length": 20}], ids=["batch", "fixed"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_padding_of_an_earlier_call_changes_nothing(
    name: str, padding: dict[str, int], question: list[str] | None
) -> None:
    """A word without tokens, padded, once passed for a word with some, and had no answer."""
    inputs = inputs_of(["makan", "\u200b", "enak", "", "sekali"], question)
    tokenizer = Tokenizer.from_str(TOKENIZERS[name].to_str())
    expected = list(tokenize_words(tokenizer, inputs, 40))
    tokenizer.enable_padding(**padding)
    tokenizer.enable_truncation(3)
    assert list(tokenize_words(tokenizer, inputs, 40)) == expected
    assert sorted(word for word in expected[0].words if word >= 0) == list(range(5))


def test_the_tokenizer_itself_keeps_its_settings() -> None:
    before = PRETRAINED.backend_tokenizer.to_str()
    encode(PRETRAINED, Inputs(["makan enak sekali"]), CLASSES, np.zeros(1, np.int64), 4)
    assert PRETRAINED.backend_tokenizer.to_str() == before


def test_a_tokenizer_without_a_fast_backend_is_refused() -> None:
    slow: Any = object()
    with pytest.raises(CheckpointError, match=r"is a object without a tokenizer\.json"):
        encode(slow, Inputs(["enak"]), CLASSES, np.zeros(1, np.int64), 8)


def test_the_types_of_a_pair_tell_its_texts_apart_where_a_model_takes_them() -> None:
    pairs, labels = Inputs(["e"], ["e e"]), np.array([1])
    found = encode(PRETRAINED, pairs, CLASSES, labels, 9)
    assert found.types is not None
    assert found.types[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert encode(PRETRAINED, pairs, CLASSES, labels, 9, types=False).types is None
