"""Triton's interpreter with its bfloat16 set right, so that kernels can be tested in that type.

Triton 3.6 keeps bfloat16 as its bits in uint16, and two operations of the interpreter forget it:
`tl.dot` multiplies the bits as integers, and a cast to bfloat16 cuts off the last 16 bits where
GPUs round half to even; of integers it makes no float at all. Loads, stores and casts to float32
are right.
"""

from typing import Any

import numpy as np
import torch

__all__ = ["correct_bfloat16"]


def correct_bfloat16() -> None:
    """Replace the two operations; calling it again changes nothing."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "corrected", False):
        return
    builder.corrected = True
    dot, cast = builder.create_dot, builder.cast_impl

    def widened(handle: Any) -> Any:  # noqa: ANN401
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(_floats(handle.data), tl.float32)

    def correct_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:  # noqa: ANN401
        return dot(self, widened(a), widened(b), *rest)

    def correct_cast(self: Any, source: Any, kind: Any) -> Any:  # noqa: ANN401
        if kind.scalar != tl.bfloat16 or source.dtype.scalar == tl.bfloat16:
            return cast(self, source, kind)
        return interpreter.TensorHandle(_bits(source.data.astype(np.float32)), kind.scalar)

    builder.create_dot, builder.cast_impl = correct_dot, correct_cast


def _floats(bits: np.ndarray) -> np.ndarray:
    """The float32 that bfloat16's bits, uint16, stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _bits(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, by torch; uint16."""
    nearest = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    bits: np.ndarray = nearest.view(torch.int16).numpy().view(np.uint16)
    return bits.reshape(values.shape)
