"""Finished layers of an unfinished quantization, kept so that it can go on where it was."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantkit.files import new_file

__all__ = ["LayerStore", "fingerprint"]


class LayerStore:
    """A folder with one file per finished layer; files appear under their names when complete.

    Args:
        folder: made when the first layer is stored; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def open(self, mark: str) -> None:
        """Forget what was stored under another mark: another model, recipe or calibration."""
        if self._folder is None:
            return
        sign = self._folder / "mark"
        if not sign.is_file() or sign.read_text() != mark:
            self.clear()
            self._folder.mkdir(parents=True)
            sign.write_text(mark)

    def get(self, layer: str) -> dict[str, Tensor] | None:
        """The tensors of a finished layer; None if it is not there or damaged."""
        if self._folder is None:
            return None
        try:
            return load_file(self._folder / f"{layer}.safetensors")
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, layer: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished layer's tensors."""
        if self._folder is None:
            return
        with new_file(self._folder / f"{layer}.safetensors") as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)

    def clear(self) -> None:
        """Remove everything: the quantization is done."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def fingerprint(recipe: str, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> str:
    """SHA-256 of everything that decides the outcome: recipe hash, weights, calibration."""
    digest = hashlib.sha256(recipe.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    for batch in batches:
        for name in sorted(batch):
            digest.update(_bytes(batch[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return flat.numpy().data
