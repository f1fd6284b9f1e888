"""An independent NumPy statement of the numeric definition, written from ONNX's text."""

import numpy as np


def quantize_linear(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, low: int, high: int
) -> np.ndarray:
    """ONNX QuantizeLinear in float32: divide, round half to even, add, saturate."""
    quotient = np.divide(x.astype(np.float32), np.float32(scale), dtype=np.float32)
    rounded = np.rint(quotient)  # rint rounds halves to even
    return np.minimum(np.maximum(rounded + np.float32(zero_point), low), high).astype(np.int32)


def integer_matmul(
    codes: np.ndarray,
    scale: float,
    zero_point: int,
    weight: np.ndarray,
    weight_scale: np.ndarray,
    bias: np.ndarray,
) -> np.ndarray:
    """float32(int32 accumulator) * (s_a * s_w) + bias, for weight [out, in]."""
    accumulator = (codes.astype(np.int64) - zero_point) @ weight.astype(np.int64).T
    factor = np.float32(scale) * weight_scale.astype(np.float32)
    result: np.ndarray = accumulator.astype(np.int32).astype(np.float32) * factor + bias
    return result
