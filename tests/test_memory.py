"""Memory that a computation frees, kept for the next or given back."""

import ctypes
import sys

import pytest
import torch

from quantkit.memory import keeping_freed_memory, resident_bytes, return_freed_memory

MANY = 64 << 20  # bytes, above what glibc maps block by block
STEP = 256 << 10

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's malloc"
)


def _grown_by_a_freed_block(smaller: int = 0) -> int:
    before = resident_bytes()
    torch.ones(MANY - smaller, dtype=torch.uint8)
    return resident_bytes() - before


def test_freed_memory_stays_within_and_goes_back_at_the_end() -> None:
    return_freed_memory()
    assert _grown_by_a_freed_block() < MANY / 2
    with keeping_freed_memory():
        # Aligning takes some more: a block serves an equal one only with what is free beside it,
        # which is the heap's affair, but each of these fits into the one before.
        grown = [_grown_by_a_freed_block(smaller=at * STEP) for at in range(6)]
        assert grown[0] > MANY / 2
        assert sum(grown) < 1.5 * MANY
        held = resident_bytes()
    assert held - resident_bytes() > MANY / 2


def test_an_error_within_gives_it_back_too() -> None:
    with pytest.raises(ZeroDivisionError), keeping_freed_memory():
        _grown_by_a_freed_block()
        held = resident_bytes()
        1 / 0  # noqa: B018
    assert held - resident_bytes() > MANY / 2
