"""The built-in data: reproducible, clean, and hard for the reasons it claims."""

import hashlib
import re
from collections import Counter

import pytest

from quantkit.data import TaskData, builtin, lexicon, load_task
from quantkit.data.builtin import LABELS, NOTE, SIZES, load_builtin


@pytest.fixture(scope="module")
def data() -> TaskData:
    return load_task("builtin", None)


def texts(data: TaskData, split: str) -> list[str]:
    return list(data.splits[split]["text"])


def test_shape(data: TaskData) -> None:
    assert (data.name, data.labels, data.notes) == ("builtin", LABELS, (NOTE,))
    assert LABELS == ("positive", "neutral", "negative")
    assert {split: len(rows) for split, rows in data.splits.items()} == SIZES
    for rows in data.splits.values():
        assert rows.column_names == ["text", "label"]
        assert rows.features["label"].names == list(LABELS)


def test_same_texts_in_every_run_and_on_every_platform(data: TaskData) -> None:
    digest = hashlib.sha256()
    for split in SIZES:
        for row in data.splits[split]:
            digest.update(f"{row['label']}\t{row['text']}\n".encode())
    assert digest.hexdigest() == DIGEST, "a word list or the grammar changed: is that meant?"


DIGEST = "56a7521557c8e11bf55020ea4705766b550a868f57d418154a0cd676e1b0eeef"


def test_a_different_seed_gives_different_texts(
    data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "SEED", builtin.SEED + 100)
    other = texts(load_builtin(), "train")
    assert len(set(other) & set(texts(data, "train"))) < 0.2 * len(other)


def test_no_text_occurs_twice(data: TaskData) -> None:
    everything = [text for split in SIZES for text in texts(data, split)]
    assert len(set(everything)) == len(everything)


def test_every_class_is_common_in_every_split(data: TaskData) -> None:
    for split, size in SIZES.items():
        shares = Counter(data.splits[split]["label"])
        assert min(shares[label] for label in range(3)) > 0.2 * size


def test_no_slot_of_a_template_is_left_open(data: TaskData) -> None:
    for split in SIZES:
        assert not [text for text in texts(data, split) if "{" in text or "}" in text]


def test_texts_fit_the_model(data: TaskData) -> None:
    longest = max(len(text.split()) for split in SIZES for text in texts(data, split))
    assert 15 <= longest <= 40


def rare_phrases() -> set[str]:
    topics = {id(topic): topic for domain in lexicon.DOMAINS for topic in domain}.values()
    phrases = {noun for topic in topics for noun in topic.rare_nouns}
    for polar in (lexicon.GENERAL, lexicon.MOODS, lexicon.VERDICTS, *(t.words for t in topics)):
        phrases |= {*polar.rare_good, *polar.rare_bad}
    return phrases


def test_rare_words_are_kept_out_of_train_only(data: TaskData) -> None:
    rare = re.compile("|".join(rf"\b{phrase}(nya)?\b" for phrase in rare_phrases()))
    assert len(rare_phrases()) > 50
    assert not [text for text in texts(data, "train") if rare.search(text)]
    for split in ("validation", "test"):
        hits = [text for text in texts(data, split) if rare.search(text)]
        assert len(hits) > 0.05 * SIZES[split]


@pytest.mark.parametrize(
    ("denied", "label"),
    [(lexicon.GENERAL.good, "negative"), (lexicon.GENERAL.bad, "positive")],
)
def test_negation_turns_the_sentiment(data: TaskData, denied: tuple[str, ...], label: str) -> None:
    """Texts of one clause only: another one may outweigh the negated one."""
    negation = re.compile(rf"\b(tidak|gak|ga|nggak|tdk) ({'|'.join(denied)})\b")
    joints = {",", "?", "dan", "tapi", "atau", "walaupun", "meskipun"}
    found = Counter(
        LABELS[row["label"]]
        for row in data.splits["train"]
        if negation.search(row["text"]) and not joints & set(row["text"].split())
    )
    del found["neutral"]  # "not good but not bad either" with a misspelt "but"
    assert found[label] >= 10
    assert found.total() == found[label]


def test_evaluative_words_occur_in_neutral_texts_too(data: TaskData) -> None:
    neutral = [row["text"] for row in data.splits["train"] if LABELS[row["label"]] == "neutral"]
    assert sum("bagus" in text.split() for text in neutral) > 30
    assert sum("jelek" in text.split() for text in neutral) > 10


def test_chat_spellings_occur(data: TaskData) -> None:
    words = Counter(word for text in texts(data, "train") for word in text.split())
    for spelling in ("gak", "ga", "nggak", "bgt", "yg", "tp", "bgus"):
        assert words[spelling] > 0, spelling
