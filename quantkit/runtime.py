"""An exported folder that answers texts: tokenizers, numpy and onnxruntime, no torch.

session = quantkit.load("runs/smsa/int8")
session.predict(["makanannya enak sekali"])   # [Prediction(label='positive', score=0.98)]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.answers import Prediction
from quantkit.errors import CheckpointError
from quantkit.onnx_file import ModelFile, find_onnx, folder_of, output_name, read_tokenizer
from quantkit.providers import (
    available_threads,
    cpu_flags,
    import_onnxruntime,
    provider,
    session_options,
)
from quantkit.session import Session

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "OnnxBackend",
    "Prediction",
    "Session",
    "available_threads",
    "cpu_flags",
    "find_onnx",
    "import_onnxruntime",
    "load",
    "session_options",
]


class OnnxBackend:
    """An ONNX file that is open in ONNX Runtime."""

    def __init__(self, inference: "onnxruntime.InferenceSession", output: str) -> None:
        self._inference = inference
        self._inputs = tuple(value.name for value in inference.get_inputs())
        self._output = output

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The file's own output, as float32."""
        feeds = {name: arrays[name] for name in self._inputs}
        outputs: list[np.ndarray] = self._inference.run([self._output], feeds)
        return outputs[0].astype(np.float32, copy=False)


def load(folder: str | Path, *, device: str = "cpu", threads: int | None = None) -> Session:
    """Open an exported folder.

    Args:
        folder: holds `onnx/`, `tokenizer.json` and `config.json`; or one of its .onnx files.
        device: `cpu` or `cuda`; the file must have been exported for it.
        threads: of the CPU provider; default: what the machine's CPU quota gives.

    Raises:
        CheckpointError: no such file, one exported for another device, or one that does not
            say what it answers.
        DependencyError: onnxruntime is missing, installed twice, or lacks the device.
    """
    path, name = find_onnx(Path(folder)), provider(device)
    try:
        inference = import_onnxruntime().InferenceSession(
            str(path), session_options(threads), providers=[name]
        )
    except Exception as problem:  # onnxruntime raises classes of its own, without a base
        raise CheckpointError(f"{path} cannot be opened: {problem}. Export it again.") from None
    tokenizer = read_tokenizer(path)
    file = ModelFile.read(inference, tokenizer, path)
    if file.target not in (None, device):
        raise CheckpointError(
            f"{path} was exported for {file.target}, and would run badly on {device}. "
            f"Export it again: quantkit export {folder_of(path)} --target {device}"
        )
    return Session(
        OnnxBackend(inference, output_name(file.head)),
        tokenizer,
        file.head,
        path,
        max_length=file.max_length,
        padding=file.padding,
    )
