"""Fake quantization with a learned range, element by element, and its gradients by differences.

The surrogate is what the straight-through gradients differentiate: every element keeps its
rounding error and the side on which it was clipped, and is smooth in x, s and z otherwise.
"""

import numpy as np

__all__ = ["surrogate", "surrogate_gradients", "value"]


def value(x: float, s: float, z: float, m: float, qmin: int, qmax: int) -> float:
    """The value s m (q - z) of one element."""
    whole = min(max(np.rint(z), qmin), qmax)
    q = min(max(np.rint(x / (s * m)) + whole, qmin), qmax)
    return float((q - whole) * m * s)


def surrogate(
    x: np.ndarray,
    s: np.ndarray,
    z: float,
    m: np.ndarray,
    grid: tuple[int, int],
    around: tuple[np.ndarray, np.ndarray, float],
) -> np.ndarray:
    """x̂, smooth around the point `around` = (x, s, z); arrays have one shape."""
    qmin, qmax = grid
    x0, s0, z0 = around
    ratio = x0 / (s0 * m)
    shifted = np.rint(ratio) + np.rint(z0)
    error = np.rint(ratio) - ratio
    straight = s * m * (x / (s * m) + error)
    low, high = s * m * (qmin - (np.rint(z0) + z - z0)), s * m * (qmax - (np.rint(z0) + z - z0))
    found: np.ndarray = np.where(shifted < qmin, low, np.where(shifted > qmax, high, straight))
    return found


def surrogate_gradients(
    x: np.ndarray, s: np.ndarray, z: float, m: np.ndarray, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx̂/dx, dx̂/ds and dx̂/dz of every element, by central differences in float64."""
    around, h = (x, s, z), 1e-6

    def at(dx: float, ds: float, dz: float) -> np.ndarray:
        return surrogate(x + dx, s + ds, z + dz, m, grid, around)

    return (
        (at(h, 0, 0) - at(-h, 0, 0)) / (2 * h),
        (at(0, h, 0) - at(0, -h, 0)) / (2 * h),
        (at(0, 0, h) - at(0, 0, -h)) / (2 * h),
    )
