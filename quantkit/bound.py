"""An ONNX file with its inputs and outputs on the device: bound once for each size of batch.

On a GPU a size becomes a CUDA graph, so that all kernels start as one. ONNX Runtime captures it at
the first run and replays it for the same addresses, shapes and `gpu_graph_id` (its documentation,
CUDA execution provider, "Using CUDA Graphs"). Sizes are therefore rounded up to one of few.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import CheckpointError
from quantkit.providers import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["MOST_GRAPHS", "BoundBackend", "rounded"]

MOST_GRAPHS = 64  # sizes with a graph, which ONNX Runtime never gives back; others run without
LEAST_STEP = 8  # tokens
_TYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Arrays = Mapping[str, np.ndarray]
Size = tuple[int, int]  # texts, tokens of each


@dataclass(frozen=True)
class _Place:
    """Tensors on the device, bound to a session's inputs and its output."""

    inputs: Mapping[str, Any]
    output: Any
    binding: Any
    options: Any


class BoundBackend:
    """Runs an open file on bound tensors; one call at a time, as a size has one place.

    Args:
        inference: on the CUDA provider with `enable_cuda_graph`, or on the CPU's.
        output: the name of the one that is wanted.
        device: where the tensors lie, `cuda` or `cpu`.
        longest: tokens that the file takes.
        padding: the token id behind a text's end.

    Raises:
        CheckpointError: the sizes of the output do not follow from those of the inputs.
    """

    def __init__(
        self,
        inference: "onnxruntime.InferenceSession",
        output: str,
        *,
        device: str,
        longest: int,
        padding: int,
    ) -> None:
        self._inference = inference
        self._inputs = [value.name for value in inference.get_inputs()]
        self._output = next(value for value in inference.get_outputs() if value.name == output)
        self._device, self._longest, self._padding = device, longest, padding
        self._names = tuple(inference.get_inputs()[0].shape)
        self._shape((1, 1))
        self._places: dict[Size, _Place] = {}
        self._running = Lock()

    def run(self, arrays: Arrays) -> np.ndarray:
        """The file's own output, as float32; see `Session.run`."""
        rows, length = arrays["input_ids"].shape
        with self._running:
            place = self._filled(arrays)
            self._compute(place)
            found = place.output.numpy()
            kept = found[:rows] if found.ndim == 2 else found[:rows, :length]
            return np.array(kept, np.float32)

    def prepared(self, arrays: Arrays) -> Callable[[], None]:
        """What computes `arrays` on the device again and again, without copies to or fro."""
        place = self._filled(arrays)
        return lambda: self._compute(place)

    def _compute(self, place: _Place) -> None:
        self._inference.run_with_iobinding(place.binding, place.options)

    def _filled(self, arrays: Arrays) -> _Place:
        """The place for a batch's size with the batch in it."""
        rows, length = arrays["input_ids"].shape
        size = rounded(rows, length, self._longest)
        place = self._places.get(size)
        if place is None:
            graph = len(self._places) + 1 if len(self._places) < MOST_GRAPHS else None
            place = self._bound(size, graph)
            if graph is not None:
                self._places[size] = place
        for name, tensor in place.inputs.items():
            filler = self._padding if name == "input_ids" else 0
            values = np.full(size, filler, np.int64)
            values[:rows, :length] = arrays[name]
            if name == "attention_mask":
                values[rows:, 0] = 1  # attention over no token at all is not a number
            tensor.update_inplace(values)
        place.binding.synchronize_inputs()
        return place

    def _bound(self, size: Size, graph: int | None) -> _Place:
        """New tensors; graph: its number, or None to capture nothing."""
        runtime = import_onnxruntime()

        def tensor(shape: Sequence[int], dtype: Any) -> Any:  # noqa: ANN401
            return runtime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device)

        binding, options = self._inference.io_binding(), runtime.RunOptions()
        if self._device == "cuda":
            options.add_run_config_entry("gpu_graph_id", str(-1 if graph is None else graph))
        inputs = {name: tensor(size, np.int64) for name in self._inputs}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        output = tensor(self._shape(size), _TYPES[self._output.type])
        binding.bind_ortvalue_output(self._output.name, output)
        return _Place(inputs, output, binding, options)

    def _shape(self, size: Size) -> list[int]:
        """The output's, for inputs of `size`."""
        known = dict(zip(self._names, size, strict=True))
        shape = [dim if isinstance(dim, int) else known.get(dim) for dim in self._output.shape]
        if None in shape or self._output.type not in _TYPES:
            raise CheckpointError(
                f"The output {self._output.name} is {self._output.type} {self._output.shape} for "
                f"inputs {list(self._names)}; CUDA graphs need sizes that follow from the inputs', "
                f"and floats. Load it without graphs, or export the model again."
            )
        return [int(dim) for dim in shape if dim is not None]


def rounded(texts: int, length: int, longest: int) -> Size:
    """The size that serves a batch: each number up to a multiple of a quarter of its power of two.

    At most a quarter is added, beyond 32 tokens: 5 texts of 33 tokens are 5 of 40, 33 of 129 are
    40 of 160. Tokens are a multiple of 8, and `longest` at most.
    """
    return _up(texts, 1), max(length, min(longest, _up(length, LEAST_STEP)))


def _up(size: int, least: int) -> int:
    step = max(least, (1 << (size.bit_length() - 1)) // 4)
    return -(-size // step) * step
