"""CUDA graphs: a whole model as one launch, one graph for each size of batch.

At batch 1 a BERT-base has some 90 kernels of a few microseconds each, and starting them one by
one takes longer than they run. A graph is captured when its size is first asked for.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit.engine.batch import Packed, Shape

__all__ = ["Graphs"]

MOST_GRAPHS = 64  # sizes kept; the one longest unused goes first
WARM_UP = 2  # runs before a capture: kernels are compiled and tuned there


@dataclass(frozen=True)
class _Captured:
    batch: Packed  # on the device: what the graph reads
    output: Tensor  # what it writes
    graph: Any


class Graphs:
    """Runs `forward` by graphs on a GPU, and directly elsewhere.

    The result of a call is valid until the next one.
    """

    def __init__(self, forward: Callable[[Packed], Tensor], device: torch.device) -> None:
        self._forward = forward
        self._device = device
        self._captured: OrderedDict[Shape, _Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @property
    def replays(self) -> bool:
        """Whether batches should have rounded sizes."""
        return self._pool is not None

    def __call__(self, batch: Packed) -> Tensor:
        """The output for a batch on the host."""
        if not self.replays:
            return self._forward(Packed(batch.values.to(self._device), batch.shape))
        captured = self.prepared(batch)
        captured.batch.values.copy_(batch.values, non_blocking=True)
        captured.graph.replay()
        return captured.output

    def prepared(self, batch: Packed) -> _Captured:
        """The graph for a batch's size, captured if need be."""
        if batch.shape not in self._captured:
            while len(self._captured) >= MOST_GRAPHS:
                self._captured.popitem(last=False)
            self._captured[batch.shape] = self._capture(batch)
        self._captured.move_to_end(batch.shape)
        return self._captured[batch.shape]

    def _capture(self, batch: Packed) -> _Captured:
        static = Packed(batch.values.to(self._device), batch.shape)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward(static)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._forward(static)
        return _Captured(static, output, graph)
