import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.integers import (
    LARGEST_MULTIPLIER,
    Integers,
    pack_nibbles,
    unpack_nibbles,
    widened,
)

_codes = hnp.arrays(
    np.int8,
    st.tuples(st.integers(1, 5), st.integers(1, 8).map(lambda half: 2 * half)),
    elements=st.integers(-7, 7),
)


def test_two_codes_a_byte_by_hand() -> None:
    packed = pack_nibbles(torch.tensor([[1, -1, 7, -7]], dtype=torch.int8))
    assert packed.tolist() == [[0xF1, 0x97]]


@given(_codes)
def test_unpacking_is_the_inverse(codes: np.ndarray) -> None:
    packed = pack_nibbles(torch.from_numpy(codes))
    assert packed.dtype == torch.uint8
    assert packed.numel() * 2 == codes.size
    assert torch.equal(unpack_nibbles(packed), torch.from_numpy(codes))


def test_an_odd_number_of_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="3 codes do not fill whole bytes"):
        pack_nibbles(torch.zeros(2, 3, dtype=torch.int8))


def test_the_widest_product_fits_into_int8() -> None:
    assert LARGEST_MULTIPLIER == 16
    codes = torch.tensor([[3, -7, 7, 0]], dtype=torch.int8)
    wide = widened(codes, torch.tensor([[16, 2]], dtype=torch.int8))
    assert wide.dtype == torch.int8
    assert wide.tolist() == [[48, -112, 14, 0]]


@given(_codes, st.integers(0, 100))
def test_values_are_scale_times_multiplier_times_code(codes: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = codes.shape
    multipliers = rng.integers(1, 17, (rows, columns // 2)).astype(np.int8)
    scale = rng.random((rows, 1), np.float32)
    matrix = Integers.of(
        torch.from_numpy(codes), torch.from_numpy(scale), 4, torch.from_numpy(multipliers)
    )
    expected = scale * (codes.astype(np.float32) * np.repeat(multipliers, 2, axis=1))
    assert matrix.shape == (rows, columns)
    np.testing.assert_array_equal(matrix.dequantized().numpy(), expected)
    np.testing.assert_array_equal(matrix.codes.numpy(), codes)
    factor = torch.from_numpy(rng.random(rows, np.float32))
    scaled = matrix.scaled(factor)
    assert scaled.stored is matrix.stored
    assert torch.equal(scaled.scale[:, 0], matrix.scale[:, 0] * factor)
