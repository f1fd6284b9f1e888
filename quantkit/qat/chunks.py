"""Work on large tensors a few rows at a time, in memory that stays in the cache.

On a CPU alone: see `in_chunks`.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["SCRATCH", "chunks", "in_chunks", "passed_inside", "rows_at_a_time"]

# Numbers that are worked on at a time. Three float32 buffers of this size fit into 2 MB, the
# second-level cache of a core of recent servers.
CHUNK = 1 << 17


class _Scratch(threading.local):
    """Memory that is used from one product to the next, and so lies in the cache; per thread.

    It is as large as the largest weight. What is in it counts until the function that took it
    returns.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def like(self, tensor: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialized memory of the shape of `tensor`."""
        key = name, dtype or tensor.dtype
        if key not in self._memory or self._memory[key].numel() < tensor.numel():
            with torch.inference_mode(False):  # whoever asks first: it is for training too
                self._memory[key] = torch.empty(tensor.numel(), dtype=key[1])
        return self._memory[key][: tensor.numel()].view(tensor.shape)


SCRATCH = _Scratch()


def in_chunks(x: Tensor) -> bool:
    """Whether `x` is worked on in chunks: on a CPU, and not under torch.compile."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rows_at_a_time(columns: int) -> int:
    """How many rows of a matrix make a chunk."""
    return max(1, CHUNK // columns)


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows [n, in] of tensors [..., in], a chunk each at most."""
    matrices = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    count = rows_at_a_time(matrices[0].shape[1])
    return zip(*(torch.split(matrix, count) for matrix in matrices), strict=True)


def passed_inside(gradient: Tensor, ratio: Tensor, low: float, high: float, out: Tensor) -> None:
    """The gradient where `low` < `ratio` < `high`, else 0, in the memory of `out`.

    The derivative of a clamp is just that, as one pass; comparisons would be four times slower.
    """
    torch.ops.aten.hardtanh_backward.grad_input(gradient, ratio, low, high, grad_input=out)
