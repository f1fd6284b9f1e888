"""Splits by distinct text: disjoint, complete, stratified, and the same everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from quantkit.data.split import carve, draw, first_of_each, split_rows, text_key
from quantkit.errors import DataError
from quantkit.source import Split

# Rows as (text, stratum): few texts, so that many rows repeat one.
ROWS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=150)
SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.33, 0.49])


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array([text_key(str(text)) for text, _ in rows], dtype=np.uint64)
    return keys, np.array([stratum for _, stratum in rows], dtype=np.int64)


def texts_per_stratum(rows: list[tuple[int, int]], chosen: np.ndarray) -> np.ndarray:
    """Distinct texts among the chosen rows, by the stratum of a text's first row."""
    first: dict[int, int] = {}
    for text, stratum in rows:
        first.setdefault(text, stratum)
    texts = {rows[row][0] for row in chosen}
    return np.bincount([first[text] for text in texts], minlength=4)


def assert_stratified(rows: list[tuple[int, int]], chosen: np.ndarray) -> None:
    everything = texts_per_stratum(rows, np.arange(len(rows)))
    part = texts_per_stratum(rows, chosen)
    share = everything * part.sum() / max(1, everything.sum())
    assert (np.abs(part - share) <= 1).all()


@given(ROWS, SHARES, SHARES)
def test_parts_are_disjoint_complete_and_stratified(
    rows: list[tuple[int, int]], validation: float, test: float
) -> None:
    parts = split_rows(*arrays(rows), Split(validation=validation, test=test))
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(rows)))
    texts = [{rows[row][0] for row in part} for part in parts.values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert all((np.diff(part) > 0).all() for part in parts.values())
    for name in ("validation", "test"):
        assert_stratified(rows, parts[name])


@given(ROWS, SHARES)
def test_a_carved_part_is_stratified_and_takes_whole_texts(
    rows: list[tuple[int, int]], share: float
) -> None:
    taken = carve(*arrays(rows), share)
    chosen = np.flatnonzero(taken)
    assert_stratified(rows, chosen)
    texts = {text for text, _ in rows}
    inside = {rows[row][0] for row in chosen}
    assert not inside & {rows[row][0] for row in np.flatnonzero(~taken)}
    assert len(inside) == (max(1, round(len(texts) * share)) if share and texts else 0)


@given(ROWS, st.integers(0, 80))
def test_drawn_rows_are_distinct_texts_and_stratified(
    rows: list[tuple[int, int]], size: int
) -> None:
    chosen = draw(*arrays(rows), size)
    texts = [rows[row][0] for row in chosen]
    assert len(set(texts)) == len(texts) == min(size, len({text for text, _ in rows}))
    assert_stratified(rows, chosen)
    assert (np.diff(chosen) > 0).all()


def test_sizes_are_exact_where_the_texts_allow_it() -> None:
    rows = [(text, 0 if text < 700 else 1) for text in range(1000)]
    parts = split_rows(*arrays(rows), Split(validation=0.1, test=0.2))
    assert [len(part) for part in parts.values()] == [700, 100, 200]
    assert [(part < 700).sum() for part in parts.values()] == [490, 70, 140]


def test_small_tables_still_have_all_three_parts() -> None:
    parts = split_rows(*arrays([(0, 0), (1, 1), (2, 0), (3, 1)]), Split())
    assert [len(part) for part in parts.values()] == [2, 1, 1]


def test_order_of_the_rows_does_not_matter() -> None:
    rows = [(text, text % 3) for text in range(200)]
    shuffled = [rows[at] for at in np.random.default_rng(0).permutation(200)]
    parts, others = (split_rows(*arrays(part), Split()) for part in (rows, shuffled))
    for name in parts:
        assert {rows[row] for row in parts[name]} == {shuffled[row] for row in others[name]}


def test_keys_are_the_same_everywhere_and_differ_with_the_seed() -> None:
    assert text_key("enak") == 14556832063591124098
    assert text_key("enak", seed=1) != text_key("enak")
    assert text_key("\u2028é", seed=2**32 - 1) < 2**64


def test_first_of_each() -> None:
    keys = np.array([5, 3, 5, 3, 9], dtype=np.uint64)
    assert_array_equal(first_of_each(keys), [True, True, False, False, True])


def test_shares_must_leave_something_for_train() -> None:
    with pytest.raises(DataError, match=r"validation 0.5 and test 0.5 leave no share for train"):
        split_rows(*arrays([(0, 0)]), Split(validation=0.5, test=0.5))
