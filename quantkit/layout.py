"""The names of a packed folder's files, and how its tensors are read: all that readers share."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantkit.errors import CheckpointError
from quantkit.files import read_json

__all__ = ["FORMAT", "METADATA", "WEIGHTS", "read_metadata", "read_tensors"]

FORMAT = 2
WEIGHTS = "quantkit.safetensors"
METADATA = "quantkit.json"


def read_metadata(folder: Path) -> dict[str, Any]:
    """What a packed folder says of itself.

    Raises:
        CheckpointError: it cannot be read, or is of another format.
    """
    metadata = read_json(folder / METADATA)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / METADATA} has format {metadata.get('format')!r}; this quantkit reads "
            f"format {FORMAT}. Upgrade quantkit, or quantize again."
        )
    return metadata


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
