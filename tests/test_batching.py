import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.batching import (
    Encoded,
    bucketed_batches,
    check_rows,
    collate,
    encode,
    equal_length_batches,
    ordered_batches,
)
from quantkit.data.tokenizer import train_wordpiece
from quantkit.errors import DataError

LENGTHS = st.lists(st.integers(1, 12), max_size=120)
SIZES = st.integers(1, 9)


@pytest.fixture
def encoded() -> Encoded:
    return Encoded([[2, 7, 3], [2, 3], [2, 8, 9, 3]], [[0, 0, 0], [0, 0], [0, 0, 1, 1]], [1, 0, 2])


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


def test_collate_takes_no_more_columns_than_the_batch_needs(encoded: Encoded) -> None:
    batch = collate(encoded, [1], pad_token_id=0)
    assert batch["input_ids"].shape == (1, 2)
    assert batch["attention_mask"].tolist() == [[1, 1]]


def test_a_pad_id_inside_a_text_is_not_masked() -> None:
    batch = collate(Encoded([[2, 0, 3], [2, 3]], [[0] * 3, [0] * 2], [0, 0]), [0, 1], 0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@given(LENGTHS, SIZES, st.integers(-3, 3), st.integers(0, 3), st.integers(1, 4))
def test_bucketed_batches_hold_every_row_once(
    lengths: list[int], size: int, seed: int, epoch: int, pool: int
) -> None:
    batches = bucketed_batches(lengths, size, seed, epoch, pool)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    # Only one batch may be short: the number of steps of an epoch is known beforehand.
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
    assert batches == bucketed_batches(lengths, size, seed, epoch, pool)


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


def test_encode_truncates_and_keeps_the_special_tokens() -> None:
    texts = ["makanan ini enak sekali", "enak", ""]
    tokenizer = train_wordpiece(texts, vocab_size=100)
    encoded = encode(tokenizer, texts, [1, 0, 0], max_length=4)
    assert encoded.lengths() == [4, 3, 2]
    assert all(row[0] == 2 and row[-1] == 3 for row in encoded.input_ids)  # [CLS] and [SEP]
    assert encoded.token_type_ids == [[0] * 4, [0] * 3, [0] * 2]
    assert (encoded.labels, len(encoded)) == ([1, 0, 0], 3)


def test_encode_without_texts_and_with_a_missing_label() -> None:
    tokenizer = train_wordpiece(["enak"], vocab_size=20)
    assert encode(tokenizer, [], [], 8) == Encoded([], [], [])
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        encode(tokenizer, ["enak", "enak"], [0], 8)


def test_check_rows_names_the_split_and_the_label(encoded: Encoded) -> None:
    check_rows(3, train=encoded)
    with pytest.raises(DataError, match="validation split has label 2, and with 2 classes"):
        check_rows(2, validation=encoded)
    with pytest.raises(DataError, match="test split has no rows"):
        check_rows(3, train=encoded, test=Encoded([], [], []))
