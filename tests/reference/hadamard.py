"""The Hadamard rotation from its bits, in NumPy and float64: entry i, j is (-1)^popcount(i & j)."""

import numpy as np


def rotation(width: int, block: int) -> np.ndarray:
    """The whole block-diagonal matrix [width, width]."""
    result = np.zeros((width, width))
    for i in range(width):
        for j in range(width):
            if i // block == j // block:
                ones = ((i % block) & (j % block)).bit_count()
                result[i, j] = (-1.0) ** ones / np.sqrt(block)
    return result
