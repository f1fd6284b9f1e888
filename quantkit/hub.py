"""Where models come from: folders and the Hugging Face Hub, and what to say if they do not."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.constants import ENDPOINT
from transformers.utils import logging as hf_logging

from quantkit.errors import CheckpointError

__all__ = ["cannot_load", "check_folder", "hub_unreachable", "quiet"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def check_folder(source: str) -> None:
    """Refuse what cannot be a model: a path without a folder, a folder without a checkpoint.

    Raises:
        CheckpointError: saying what is missing.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
            raise CheckpointError(
                f"{source}: no such folder. --model takes a folder or a Hub name."
            )
        return
    if (folder / "quantkit.json").is_file():
        raise CheckpointError(
            f"{source} is a quantized checkpoint; a float one is needed here. "
            f"Its float model lies beside it if quantkit made it (runs/NAME/float)."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{source} holds no config.json: it is not a model folder.")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise CheckpointError(f"{source} holds no weights ({' or '.join(_WEIGHTS[:2])}).")


def hub_unreachable(source: str) -> bool:
    """Whether the Hub's address cannot even be looked up; a proxy does that by itself.

    A `source` that is a folder needs no Hub, and no look-up, which can take seconds to fail.
    """
    if Path(source).is_dir():
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def cannot_load(source: str, problem: Exception) -> str:
    """What went wrong, and the ways out, which differ for a folder and a Hub name."""
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
    if Path(source).is_dir():
        return f"{source} cannot be loaded: {reason}"
    return (
        f"The model {source!r} is neither a folder nor in the local Hugging Face cache, and it "
        f"could not be downloaded ({reason}). Ways out:\n"
        f"  - with a network: check the name on the Hub; a private model needs `hf auth login`\n"
        f"  - on another machine: hf download {source} --local-dir FOLDER, copy FOLDER here and "
        f"pass --model FOLDER\n"
        f"  - without a network: quantkit run builtin.yaml uses the built-in data and model"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading report: what matters in it is checked above."""
    logging: Any = hf_logging  # its functions are not typed
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
