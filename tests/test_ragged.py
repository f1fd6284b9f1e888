import gc
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.ragged import Ragged, RaggedWriter

ROWS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), max_size=8)


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


@given(ROWS)
def test_rows_come_back(rows: list[list[int]]) -> None:
    ragged = Ragged.of(rows, np.int32)
    assert as_lists(ragged) == rows
    assert ragged.lengths().tolist() == [len(row) for row in rows]
    assert all(ragged[row].dtype == np.int32 for row in range(len(ragged)))


@given(ROWS, ROWS)
def test_two_digests_are_equal_if_and_only_if_the_rows_are(
    one: list[list[int]], other: list[list[int]]
) -> None:
    digests = [Ragged.of(rows, np.int32).digest() for rows in (one, other, one)]
    assert digests[0] == digests[2]
    assert (digests[0] == digests[1]) == (one == other)


def test_a_digest_tells_apart_where_rows_end() -> None:
    cuts = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2, 3], []], [[], [1, 2, 3]]]
    assert len({Ragged.of(rows, np.int8).digest() for rows in cuts}) == len(cuts)


def test_a_digest_covers_more_than_it_reads_at_once() -> None:
    values = np.zeros(5_000_000, np.int8)
    before = Ragged.of([values], np.int8).digest()
    values[-1] = 1
    assert Ragged.of([values], np.int8).digest() != before


def test_arrays_and_lists_are_the_same_rows() -> None:
    lists, arrays = [[1, 2], [], [3]], [np.array([1, 2]), np.empty(0, np.int64), np.array([3])]
    assert Ragged.of(arrays, np.int8).digest() == Ragged.of(lists, np.int8).digest()


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        Ragged.of([[300]], np.int8)


def test_rows_cannot_be_changed() -> None:
    row = Ragged.of([[1, 2]], np.int32)[0]
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 5


def test_rows_lie_in_a_file_without_a_name_in_the_folder_for_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ragged = Ragged.of([list(range(1000))], np.int32)
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert f"{tmp_path}/" in maps.read_text()
    assert list(tmp_path.iterdir()) == []
    assert ragged[0].sum() == 499_500


def test_rows_that_are_given_up_leave_no_open_file() -> None:
    """Or else Python would warn here, and warnings are errors."""
    writer = RaggedWriter(np.int8)
    writer.add([1, 2, 3])
    del writer
    gc.collect()
