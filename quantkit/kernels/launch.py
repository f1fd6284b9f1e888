"""Triton, where there is one: what the kernels here and their callers need to know of it.

Every kernel has a plain torch function beside it that computes the same. `uses_triton` says
which of the two runs: the kernel for tensors on a GPU, and for all tensors where Triton's
interpreter is on (TRITON_INTERPRET=1), which is how kernels are tested without a GPU.
"""

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:  # torch for CPUs comes without
        triton, tl = None, SimpleNamespace(constexpr=object)

__all__ = ["blocks", "has_triton", "jit", "power_of_two", "tl", "triton", "uses_triton"]


def jit(function: Any) -> Any:  # noqa: ANN401
    """`triton.jit`; without Triton the function as it is, which nobody then calls."""
    return function if triton is None else triton.jit(function)


def has_triton() -> bool:
    """Whether kernels can be compiled or interpreted at all."""
    return triton is not None


def uses_triton(x: Tensor) -> bool:
    """Whether work on `x` is done by a kernel."""
    return has_triton() and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`: 10 in blocks of 4 are 3."""
    return -(-size // block)


def power_of_two(size: int, least: int = 16) -> int:
    """The power of two at or above `size`: 768 gives 1024. Triton's blocks are such."""
    return max(least, 1 << (size - 1).bit_length())
