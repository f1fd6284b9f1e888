"""Everything a killed fine-tuning run needs to go on, in a folder without pickles.

state.safetensors    weights now and of the best epoch, AdamW's moments, generators' states
state.json           the position in the run, and the fingerprint of its settings and data
"""

import glob
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from quantkit.errors import CheckpointError, QuantkitError, RecipeError
from quantkit.files import new_folder, read_json, write_json

__all__ = ["Position", "copy_weights", "has_state", "load_state", "load_weights", "save_state"]

Weights = Mapping[str, Tensor]

_TENSORS = "state.safetensors"
_POSITION = "state.json"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Position:
    """Where a run stands: what is done, and what was measured on the way."""

    epoch: int = 0  # of the next step, from 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # steps of the run that are done
    loss_sum: float = 0.0  # over the rows of this epoch
    rows: int = 0  # of this epoch
    seconds: float = 0.0  # of this epoch
    best_score: float | None = None
    best_epoch: int = 0  # from 1; 0: none is complete
    history: tuple[dict[str, float], ...] = ()  # one entry per complete epoch


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Written:
    fingerprint: str
    position: Position


_ADAPTER: TypeAdapter[_Written] = TypeAdapter(_Written)


def has_state(folder: Path) -> bool:
    """Whether there is a state to go on from; one that a kill left half renamed is put back."""
    # A kill between the two renames of `new_folder` leaves only the complete older state.
    retired = sorted(path for path in _leftovers(folder) if path.suffix == ".old")
    if retired and not folder.exists():
        retired[-1].replace(folder)
    return folder.is_dir() and any(folder.iterdir())


def save_state(
    folder: Path,
    fingerprint: str,
    position: Position,
    model: nn.Module,
    optimizer: Optimizer,
    best: Weights,
) -> None:
    """Write the state; an earlier one in `folder` is replaced when the new one is complete.

    Args:
        folder: belongs to the state alone.
        fingerprint: names the settings and data of the run.
        position: how far the run is.
        model: its parameters and buffers are written.
        optimizer: its moments and step counts are written.
        best: the weights of the best epoch, empty before the first is complete.
    """
    for path in _leftovers(folder):
        shutil.rmtree(path)
    tensors = {f"model.{name}": value for name, value in _weights(model)}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
    tensors |= {f"rng.{name}": value for name, value in _generators().items()}
    with new_folder(folder, overwrite=True) as partial:
        written = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(written, partial / _TENSORS)
        write_json(partial / _POSITION, asdict(_Written(fingerprint, position)))


def load_state(
    folder: Path, fingerprint: str, model: nn.Module, optimizer: Optimizer
) -> tuple[Position, dict[str, Tensor]]:
    """Put a saved state into `model`, `optimizer` and torch's random generators.

    Returns:
        The position in the run, and the weights of its best epoch so far on the CPU.

    Raises:
        CheckpointError: the state is damaged.
        RecipeError: it belongs to a run with other settings or other data.
    """
    try:
        written = _ADAPTER.validate_python(read_json(folder / _POSITION))
        tensors = load_file(folder / _TENSORS)
    except (QuantkitError, ValidationError, SafetensorError, OSError) as problem:
        raise _damaged(folder, problem) from None
    if written.fingerprint != fingerprint:
        raise RecipeError(
            f"{folder} holds a run with other settings, another model or other data. Resume it "
            f"with what it began with, or pass --overwrite to start over."
        )
    best = _part(tensors, "best.")
    try:
        load_weights(model, _part(tensors, "model."))
        _load_optimizer(optimizer, _part(tensors, "optimizer."))
        _set_generators(_part(tensors, "rng."))
    except (KeyError, ValueError, RuntimeError) as problem:
        raise _damaged(folder, problem) from None
    return written.position, best


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers on the CPU, by name."""
    return {name: value.detach().to("cpu", copy=True) for name, value in _weights(model)}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Put weights from `copy_weights` back into `model`, in place.

    Raises:
        KeyError: a parameter or buffer is not in `weights`.
        ValueError: it has another shape there.
    """
    with torch.no_grad():
        for name, target in _weights(model):
            if weights[name].shape != target.shape:
                raise ValueError(f"{name} is {[*weights[name].shape]}, not {[*target.shape]}")
            target.copy_(weights[name])


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers; tied ones come once, as safetensors demands."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _load_optimizer(optimizer: Optimizer, tensors: Weights) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _generators() -> dict[str, Tensor]:
    """States of torch's generators, uint8; dropout draws from these and nothing else is random."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        devices = enumerate(torch.cuda.get_rng_state_all())
        states |= {f"cuda.{index}": state for index, state in devices}
    return states


def _set_generators(states: Weights) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            # A run that goes on with more devices than it had leaves the new ones as seeded.
            if f"cuda.{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda.{index}"], index)


def _part(tensors: Weights, prefix: str) -> dict[str, Tensor]:
    # Copies, because the loaded tensors are views of a file that the next save removes.
    return {
        name.removeprefix(prefix): value.clone()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _leftovers(folder: Path) -> list[Path]:
    """What `new_folder` had under temporary names when an earlier run was killed."""
    return list(folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"))


def _damaged(folder: Path, problem: Exception) -> CheckpointError:
    return CheckpointError(
        f"The training state in {folder} is damaged ({problem}). Pass --overwrite to start over."
    )
