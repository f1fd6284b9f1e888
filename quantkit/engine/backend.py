"""The torch engine as a session's backend."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import get_args

import numpy as np
import torch

from quantkit.engine.batch import pack
from quantkit.engine.checkpoint import Checkpoint, read_checkpoint
from quantkit.engine.graphs import Graphs
from quantkit.engine.model import build
from quantkit.engine.products import Precision
from quantkit.errors import CheckpointError, DependencyError
from quantkit.kernels.launch import has_triton
from quantkit.onnx_file import read_tokenizer
from quantkit.session import Session

__all__ = ["TorchBackend", "open_session"]


class TorchBackend:
    """A checkpoint on a device: packed batches through fused kernels, replayed as CUDA graphs."""

    def __init__(self, source: Checkpoint, precision: Precision, device: torch.device) -> None:
        stream = torch.float16 if device.type == "cuda" else torch.float32
        self.precision = precision
        self.encoder = build(source, precision, stream)
        self.graphs = Graphs(self.encoder, device)
        self._padding = source.plan.embedding.padding
        self._running = Lock()  # a graph has one place for its inputs

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The output for padded arrays, float32; see `Session.run`."""
        batch = pack(arrays, self._padding, exact=not self.graphs.replays)
        mask = arrays["attention_mask"].astype(bool)
        with self._running:
            found: np.ndarray = self.graphs(batch).cpu().numpy()
        if self.encoder.head.kind == "sequence":
            return found[: len(mask)]
        result = np.zeros((*mask.shape, found.shape[-1]), np.float32)
        result[mask] = found[: int(mask.sum())]
        return result


def open_session(folder: Path, device: str = "cuda", precision: Precision | None = None) -> Session:
    """Open a packed or float checkpoint folder.

    Args:
        folder: of a packed or a float model, with its tokenizer.json.
        device: `cuda`, or `cpu`, where every kernel is plain torch in float32.
        precision: of the products; default: `packed` for a packed folder, else float16 on CUDA
            and float32 elsewhere.

    Raises:
        CheckpointError: the folder cannot be read.
        DependencyError: no GPU, no Triton, or a GPU without float8.
    """
    if precision is not None and precision not in get_args(Precision):
        raise CheckpointError(
            f"precision is {precision!r}; the torch engine knows {', '.join(get_args(Precision))}."
        )
    place = torch.device(device)
    if place.type == "cuda":
        _check_gpu(place, precision)
    source = read_checkpoint(folder, place)
    packed = any(name.endswith(".codes") for name in source.tensors)
    if precision is None:
        precision = "packed" if packed else "float16" if place.type == "cuda" else "float32"
    if precision == "packed" and not packed:
        raise CheckpointError(
            f"{folder} is a float model; precision 'packed' is for quantized ones. Make one with: "
            f"quantkit ptq"
        )
    return Session(
        TorchBackend(source, precision, place),
        read_tokenizer(source.path),
        source.head,
        source.path,
        max_length=source.max_length,
        padding=source.plan.pad_token_id,
    )


def _check_gpu(device: torch.device, precision: str | None) -> None:
    if not torch.cuda.is_available():
        raise DependencyError(
            "torch finds no CUDA GPU. Pass --device cpu, or install torch's CUDA build on a "
            "machine with an NVIDIA GPU."
        )
    if not has_triton():
        raise DependencyError("The torch engine's kernels need Triton: pip install triton")
    if precision == "float8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise DependencyError(
            f"{torch.cuda.get_device_name(device)} has no float8 products. Take precision float16."
        )
