"""A portable ONNX file that is open in OpenVINO, which has the faster integer products on x86.

What is not in integers is computed in float32: left to itself OpenVINO takes bfloat16 where a
processor has it, and answers change with the machine.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import local
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, DependencyError
from quantkit.onnx_file import Interface, folder_of
from quantkit.providers import available_threads

__all__ = ["OpenvinoBackend", "open_portable"]


class OpenvinoBackend:
    """A model that OpenVINO has compiled; threads may share it, each has a request of its own."""

    def __init__(self, compiled: Any, output: str) -> None:  # noqa: ANN401
        self._compiled = compiled
        self._inputs = tuple(value.any_name for value in compiled.inputs)
        self._output = output
        self._own = local()

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The file's own output, as float32."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        found = self._own.request.infer({name: arrays[name] for name in self._inputs})
        output: np.ndarray = found[self._output]
        return output.astype(np.float32, copy=False)


def open_portable(
    path: Path, threads: int | None = None, cache: str | Path | None = None
) -> tuple[Any, Interface]:
    """The compiled model of an ONNX file, and what the file says of itself.

    Args:
        path: of a file for the portable target.
        threads: default: what the machine's CPU quota gives.
        cache: folder in which OpenVINO keeps what it compiled; default: it keeps nothing.

    Raises:
        CheckpointError: OpenVINO cannot run the file.
        DependencyError: OpenVINO is not installed.
    """
    try:
        openvino: Any = import_module("openvino")
    except ImportError:
        raise DependencyError(
            "OpenVINO is not installed. pip install 'quantkit[openvino]', or leave out "
            "engine='openvino'."
        ) from None
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads or available_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if cache is not None:
        options["CACHE_DIR"] = str(cache)
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1]
        raise CheckpointError(
            f"OpenVINO cannot run {path} ({reason}). It runs files of the portable target: "
            f"quantkit export {folder_of(path)} --target portable"
        ) from None
    return compiled, _interface(model)


def _interface(model: Any) -> Interface:  # noqa: ANN401
    said = model.get_rt_info(["framework"]).value if model.has_rt_info(["framework"]) else {}
    return Interface(
        {name: str(value) for name, value in said.items()},
        tuple(value.any_name for value in model.inputs),
        {
            value.any_name: [
                size.get_length() if size.is_static else None for size in value.partial_shape
            ]
            for value in model.outputs
        },
    )
