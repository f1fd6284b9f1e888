"""Calibration written out in NumPy: raw values and plain loops, nothing of quantkit's."""

import numpy as np

from tests.reference.integers import quantize_linear

__all__ = ["best_of_pairs", "divergence", "scale_and_zero_point", "squared_error"]


def scale_and_zero_point(low: float, high: float, qmin: int, qmax: int) -> tuple[float, float]:
    """Scale and zero point of a range, in float32 like ONNX's; symmetric if qmin == -qmax."""
    if qmin == -qmax:
        scale = np.float32(max(abs(low), abs(high))) / np.float32(qmax)
        return (float(scale) if scale >= 2.0**-126 else 1.0), 0.0
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (np.float32(high) - np.float32(low)) / np.float32(qmax - qmin)
    if scale < 2.0**-126:
        scale = np.float32(1.0)
    zero_point = qmin - np.rint(np.float32(low) / scale)
    return float(scale), float(min(max(zero_point, qmin), qmax))


def squared_error(x: np.ndarray, low: float, high: float, qmin: int, qmax: int) -> float:
    """Mean squared error of the values themselves, without a histogram."""
    scale, zero_point = scale_and_zero_point(low, high, qmin, qmax)
    codes = quantize_linear(x, np.array(scale), np.array(zero_point), qmin, qmax)
    return float(np.mean((((codes - zero_point) * scale) - x.astype(np.float64)) ** 2))


def divergence(
    counts: np.ndarray, centres: np.ndarray, low: float, high: float, qmin: int, qmax: int
) -> float:
    """KL divergence of one histogram from its quantized version, one bin after the other."""
    scale, zero_point = scale_and_zero_point(low, high, qmin, qmax)
    width = centres[1] - centres[0]
    inside = [i for i in range(len(counts)) if low <= centres[i] <= high and counts[i] > 0]
    if not inside or scale < width * (1 - 1e-6):
        return float("inf")
    reference = {i: float(counts[i]) for i in inside}
    members: dict[int, list[int]] = {}
    for i in inside:
        code = int(np.clip(np.rint(centres[i] / scale) + zero_point, qmin, qmax))
        members.setdefault(code, []).append(i)
    candidate = {}
    for bins in members.values():
        for i in bins:
            candidate[i] = sum(float(counts[j]) for j in bins) / len(bins)
    for i in range(len(counts)):  # what is clipped lands on the outermost occupied bins
        if centres[i] < low:
            reference[inside[0]] += float(counts[i])
        elif centres[i] > high:
            reference[inside[-1]] += float(counts[i])
    p_sum, q_sum = sum(reference.values()), sum(candidate.values())
    result = 0.0
    for i in inside:
        p, q = reference[i] / p_sum, candidate[i] / q_sum
        result += p * np.log(p / q)
    return float(result)


def best_of_pairs(
    x: np.ndarray, qmin: int, qmax: int, steps: int
) -> tuple[float, tuple[float, float]]:
    """The least squared error of all pairs of shares of both ends, and its range."""
    low, high = float(x.min()), float(x.max())
    best = (float("inf"), (low, high))
    for i in range(steps, 0, -1):
        for j in range(steps, 0, -1):
            if qmin == -qmax and i != j:
                continue
            widest = max(abs(low), abs(high))
            below, above = (widest, widest) if qmin == -qmax else (abs(low), abs(high))
            new_low = min(max(low, -below * i / steps), high)
            new_high = max(min(high, above * j / steps), new_low)
            error = squared_error(x, new_low, new_high, qmin, qmax)
            if error < best[0]:
                best = (error, (new_low, new_high))
    return best
