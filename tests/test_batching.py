from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.batching import (
    IGNORED,
    Encoded,
    bucketed_batches,
    check_rows,
    collate,
    encode,
    encode_unlabelled,
    equal_length_batches,
    ordered_batches,
)
from quantkit.data.tokenizer import train_wordpiece
from quantkit.errors import DataError
from quantkit.heads import Head, Kind
from quantkit.ragged import Ragged
from quantkit.tokenization import Inputs
from tests.training import (
    ASPECTS,
    CLASSES,
    FEATURES,
    HEADS,
    MULTILABEL,
    REGRESSION,
    WORDS,
    byte_level_tokenizer,
    make_rows,
    tokens,
)

LENGTHS = st.lists(st.integers(1, 12), max_size=120)
SIZES = st.integers(1, 9)
WORDPIECE = train_wordpiece(["makan enak tidak sekali"], vocab_size=60)
TOKENIZERS = {"wordpiece": WORDPIECE, "byte-level": byte_level_tokenizer()}


def rows_of(
    head: Head,
    ids: Sequence[Sequence[int]],
    labels: Any,  # noqa: ANN401
    types: Sequence[Sequence[int]] | None = None,
) -> Encoded:
    """Rows by hand; all tokens with a label answer for a word."""
    words = None
    if head.kind == "words":
        words = Ragged.of([np.cumsum(np.array(r) >= 0) - 1 for r in labels], np.int32)
        labels = Ragged.of(labels, np.int32)
    kinds = None if types is None else Ragged.of(types, np.int8)
    return Encoded(head, Ragged.of(ids, np.int32), kinds, labels, np.arange(len(ids)), words)


IDS = [[2, 7, 3], [2, 3], [2, 8, 9, 3]]
TYPES = [[0, 0, 0], [0, 0], [0, 0, 1, 1]]


@pytest.fixture
def encoded() -> Encoded:
    return rows_of(Head("classification", ("a", "b", "c")), IDS, np.array([1, 0, 2]), TYPES)


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def test_collate_pads_ids_mask_and_types_to_the_longest_row_of_the_batch(encoded: Encoded) -> None:
    batch = collate(encoded, [2, 1], pad_token_id=5)
    expected = {
        "input_ids": [[2, 8, 9, 3], [2, 3, 5, 5]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 1, 1], [0, 0, 0, 0]],
        "labels": [2, 0],
    }
    assert {name: values.tolist() for name, values in batch.items()} == expected
    assert {values.dtype for values in batch.values()} == {torch.int64}
    # And has no more columns than the batch needs.
    assert collate(encoded, [1], pad_token_id=0)["attention_mask"].tolist() == [[1, 1]]


def test_a_pad_id_inside_a_text_is_not_masked() -> None:
    batch = collate(rows_of(CLASSES, [[2, 0, 3], [2, 3]], np.zeros(2, np.int64)), [0, 1], 0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_model_without_token_types_gets_none(encoded: Encoded) -> None:
    batch = collate(replace(encoded, types=None), [0, 1], 0)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


SHAPES: dict[Kind, tuple[tuple[int, ...], torch.dtype]] = {
    "classification": ((4,), torch.int64),
    "aspects": ((4, 2), torch.int64),
    "multilabel": ((4, 3), torch.int64),
    "regression": ((4,), torch.float64),
    "features": ((4,), torch.int64),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_labels_of_a_batch_are_the_rows_labels(kind: Kind) -> None:
    rows = make_rows(20, 1, HEADS[kind])
    found = collate(rows, [7, 0, 3, 7], 0)["labels"]
    assert (tuple(found.shape), found.dtype) == SHAPES[kind]
    references = rows.references()
    assert found.tolist() == [np.asarray(references[row]).tolist() for row in (7, 0, 3, 7)]


def test_labels_of_words_are_padded_with_what_losses_ignore() -> None:
    rows = rows_of(WORDS, IDS, [[IGNORED, 1, IGNORED], [1, IGNORED], [0, 1, IGNORED, IGNORED]])
    batch = collate(rows, [1, 2], 0)
    assert batch["labels"].tolist() == [[1, -100, -100, -100], [0, 1, -100, -100]]
    assert batch["labels"].dtype == torch.int64


def test_labels_are_counted_as_a_mean_loss_divides() -> None:
    words = rows_of(WORDS, IDS, [[IGNORED, 1, IGNORED], [IGNORED] * 2, [0, 1, 0, IGNORED]])
    assert [words.count([row]) for row in range(3)] == [1, 0, 3]
    assert (words.count([2, 0, 2]), words.count([])) == (7, 0)
    counts = {head.kind: make_rows(20, 1, head).count([3, 1]) for head in HEADS.values()}
    del counts["words"]
    expected = {"classification": 2, "aspects": 4, "multilabel": 6, "regression": 2, "features": 2}
    assert counts == expected


def test_texts_have_no_words_to_gather(encoded: Encoded) -> None:
    with pytest.raises(ValueError, match="texts have no words"):
        encoded.by_row([np.zeros(3)] * 3)


@given(LENGTHS, SIZES, st.integers(-3, 3), st.integers(0, 3), st.integers(1, 4))
def test_bucketed_batches_hold_every_row_once(
    lengths: list[int], size: int, seed: int, epoch: int, pool: int
) -> None:
    batches = bucketed_batches(lengths, size, seed, epoch, pool)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    # Only one batch may be short: the number of steps of an epoch is known beforehand.
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
    assert batches == bucketed_batches(np.array(lengths, np.int64), size, seed, epoch, pool)


def test_bucketed_batches_change_with_the_epoch_and_with_the_seed() -> None:
    lengths = [1 + row % 7 for row in range(60)]
    orders = [bucketed_batches(lengths, 4, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert {frozenset(batch) for batch in orders[0]} != {frozenset(batch) for batch in orders[1]}


def test_bucketed_batches_pad_far_less_than_shuffled_rows_and_are_not_sorted() -> None:
    lengths = [1 + (row * 37) % 50 for row in range(400)]
    batches = bucketed_batches(lengths, 8, seed=0, epoch=0)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest != sorted(longest)


@given(LENGTHS, SIZES)
def test_ordered_batches_hold_every_row_once_in_order_of_length(
    lengths: list[int], size: int
) -> None:
    batches = ordered_batches(lengths, size)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    found = [lengths[row] for row in flat(batches)]
    assert found == sorted(found)
    assert all(len(batch) <= size for batch in batches)


@given(LENGTHS, SIZES)
def test_equal_length_batches_need_no_padding_and_hold_every_row_once(
    lengths: list[int], size: int
) -> None:
    batches = equal_length_batches(lengths, size)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= size for batch in batches)


def test_equal_length_batches_are_as_full_as_they_can_be() -> None:
    assert equal_length_batches([3, 5, 3, 3, 5], 2) == [[0, 2], [3], [1, 4]]


def test_encode_cuts_texts_counts_them_and_keeps_the_special_tokens() -> None:
    texts = ["makan ini enak sekali", "e", ""]
    found = encode(WORDPIECE, Inputs(texts), CLASSES, np.array([1, 0, 0]), max_length=4)
    assert found.lengths().tolist() == [4, 3, 2]
    assert all(row[0] == 2 and row[-1] == 3 for row in tokens(found))  # [CLS] and [SEP]
    assert found.types is not None
    assert [found.types[row].tolist() for row in range(3)] == [[0] * 4, [0] * 3, [0] * 2]
    assert (found.cut, found.words, len(found)) == (1, None, 3)
    assert found.sources.tolist() == [0, 1, 2]


REFERENCES: dict[Kind, NDArray[Any]] = {
    "classification": np.array([1, 0, 1]),
    "aspects": np.array([[0, 2], [1, 1], [2, 0]]),
    "multilabel": np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1]]),
    "regression": np.array([0.1, -3.5, 1e9]),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_references_of_texts_are_what_was_put_in(kind: Kind) -> None:
    texts = Inputs(["makan", "enak sekali", "tidak"])
    found = encode(WORDPIECE, texts, HEADS[kind], REFERENCES[kind], 8).references()
    assert isinstance(found, np.ndarray)
    assert (found.tolist(), found.dtype) == (REFERENCES[kind].tolist(), REFERENCES[kind].dtype)


# Words of many tokens, with spaces, and of which a tokenizer makes nothing.
WORD = st.one_of(
    st.sampled_from(
        ["makan", "enak sekali", "tidaktidaktidak", "\u200b", "", " ", "😀", "a b c d"]
    ),
    st.text("maken 1", max_size=9),
)
SENTENCES = st.lists(st.lists(WORD, min_size=1, max_size=30), max_size=4)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)), SENTENCES, st.integers(8, 24), st.booleans(), st.randoms()
)
def test_references_of_words_are_what_was_put_in(
    name: str,
    sentences: list[list[str]],
    limit: int,
    asked: bool,
    random: Any,  # noqa: ANN401
) -> None:
    labels = [np.array([random.randrange(2) for _ in words], np.int64) for words in sentences]
    inputs = Inputs(sentences, [["enak", "tidak"]] * len(sentences) if asked else None)
    found = encode(TOKENIZERS[name], inputs, WORDS, labels, limit)
    references = found.references()
    assert [row.tolist() for row in references] == [row.tolist() for row in labels]
    assert found.count(range(len(found))) == sum(map(len, labels))
    assert sorted(set(found.sources.tolist())) == list(range(len(sentences)))
    assert found.cut == 0


def test_rows_whose_labels_do_not_matter_have_zeros() -> None:
    texts = encode_unlabelled(WORDPIECE, Inputs(["makan", "enak"]), FEATURES, 8)
    assert collate(texts, [0, 1], 0)["labels"].tolist() == [0, 0]
    words = encode_unlabelled(WORDPIECE, Inputs([["makan", "enak"], ["e"]]), WORDS, 8, types=False)
    assert [row.tolist() for row in words.references()] == [[0, 0], [0]]
    assert words.types is None


def test_encode_without_rows_and_with_a_missing_label() -> None:
    for head in (CLASSES, WORDS):
        none = encode(WORDPIECE, Inputs([]), head, np.zeros(0, np.int64), 8)
        assert (len(none), len(none.references()), none.lengths().tolist()) == (0, 0, [])
    with pytest.raises(DataError, match="2 rows and 1 labels"):
        encode(WORDPIECE, Inputs(["enak", "enak"]), CLASSES, np.zeros(1, np.int64), 8)


WORD_LABELS = [[IGNORED, 1, IGNORED], [0, IGNORED], [IGNORED, 0, 1, IGNORED]]


@pytest.mark.parametrize("head", [CLASSES, ASPECTS, MULTILABEL, REGRESSION], ids=lambda h: h.kind)
def test_the_digest_of_texts_changes_with_any_change(head: Head) -> None:
    width = {"aspects": (2,), "multilabel": (3,)}.get(head.kind, ())
    labels = np.zeros((3, *width), np.float64 if head.kind == "regression" else np.int64)
    rows = rows_of(head, IDS, labels, TYPES)
    assert rows.digest() == rows_of(head, IDS, labels.copy(), TYPES).digest()
    found = [rows, rows_of(head, IDS, labels)]
    for place in np.ndindex(*labels.shape):
        other = labels.copy()
        other[place] = 1
        found.append(rows_of(head, IDS, other, TYPES))
    found.append(rows_of(head, [[2, 7, 4], *IDS[1:]], labels, TYPES))
    found.append(rows_of(head, IDS, labels, [[0, 0, 1], *TYPES[1:]]))
    found.append(rows_of(head, [IDS[1], IDS[0], IDS[2]], labels, [TYPES[1], TYPES[0], TYPES[2]]))
    found.append(rows_of(head, [[2, 7], [3, 2, 3], IDS[2]], labels, [[0] * 2, [0] * 3, TYPES[2]]))
    assert len({row.digest() for row in found}) == len(found)


def test_the_digest_of_words_changes_with_any_label() -> None:
    rows = [rows_of(WORDS, IDS, WORD_LABELS)]
    for row, place in [(0, 1), (1, 0), (2, 1), (2, 2)]:
        other = [list(labels) for labels in WORD_LABELS]
        other[row][place] = 1 - other[row][place]
        rows.append(rows_of(WORDS, IDS, other))
    rows.append(rows_of(WORDS, IDS, [*WORD_LABELS[:2], [IGNORED, 0, IGNORED, 1]]))
    assert len({row.digest() for row in rows}) == len(rows)


def test_check_rows_names_the_split_and_the_label(encoded: Encoded) -> None:
    check_rows(train=encoded)
    two = Head("classification", ("a", "b"))
    with pytest.raises(DataError, match="validation split has label 2, and with 2 classes"):
        check_rows(train=encoded, validation=replace(encoded, head=two))
    with pytest.raises(DataError, match="test split has no rows"):
        check_rows(train=encoded, test=rows_of(CLASSES, [], np.zeros(0, np.int64)))


# Labels of three rows that are outside, and the number of classes that is told.
OUTSIDE: dict[str, tuple[Head, object, str]] = {
    "negative": (CLASSES, np.array([0, -1, 1]), "label -1, and with 2 classes"),
    "aspects": (ASPECTS, np.array([[0, 0], [0, 3], [2, 2]]), "label 3, and with 3 classes"),
    "multilabel": (MULTILABEL, np.array([[0, 1, 2]] * 3), "label 2, and with 2 classes"),
    "words": (WORDS, [[IGNORED, 2], [0, 1], [0, 0]], "label 2, and with 2 classes"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_check_rows_knows_the_labels_of_every_kind(name: str) -> None:
    head, labels, message = OUTSIDE[name]
    rows = rows_of(head, [[2, 3]] * 3, labels)
    with pytest.raises(DataError, match=f"train split has {message}"):
        check_rows(train=rows)


def test_check_rows_takes_any_value_and_ignored_tokens() -> None:
    check_rows(
        train=rows_of(REGRESSION, [[2, 3]] * 2, np.array([-1e9, 7.5])),
        validation=rows_of(WORDS, IDS, WORD_LABELS),
    )
