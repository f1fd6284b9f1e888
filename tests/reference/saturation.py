"""What a processor without VNNI computes: u8 x s8 products whose pairs are summed in 16 bits.

`VPMADDUBSW` multiplies 8-bit numbers, unsigned by signed, and adds each two neighbouring products
with saturation to int16; `VPMADDWD` then adds pairs of those in 32 bits (Intel's instruction set
reference). A pair of full-range products, 2 * 255 * 127 = 64,770, does not fit into 32,767.
"""

import numpy as np


def saturating_product(codes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """uint8 codes [rows, in] times int8 weights [in, out] as int32, `in` even."""
    products = codes.astype(np.int32)[:, :, None] * weight.astype(np.int32)[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    sums: np.ndarray = np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)
    return sums


def overflows(codes: np.ndarray, weight: np.ndarray) -> int:
    """How many results are not the exact ones."""
    exact = codes.astype(np.int64) @ weight.astype(np.int64)
    return int((saturating_product(codes, weight) != exact).sum())
