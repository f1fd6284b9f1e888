"""The names of a packed folder's files, and how its tensors are read: all that readers share."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantkit.errors import CheckpointError

__all__ = ["FORMAT", "METADATA", "WEIGHTS", "read_tensors"]

FORMAT = 2
WEIGHTS = "quantkit.safetensors"
METADATA = "quantkit.json"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError) as problem:
        raise CheckpointError(
            f"{path} cannot be read ({problem}). The folder is damaged: quantize again."
        ) from None
