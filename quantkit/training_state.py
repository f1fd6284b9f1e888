"""Everything a killed fine-tuning run needs to go on, in a folder without pickles.

state.safetensors    weights now and of the best epoch, AdamW's moments, generators' states
state.json           the position in the run, and the fingerprint of its settings and data
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from quantkit.errors import CheckpointError, QuantkitError, RecipeError
from quantkit.files import new_folder, put_back, read_json, write_json

__all__ = [
    "Position",
    "StateStore",
    "copy_weights",
    "fingerprint_of",
    "has_state",
    "load_weights",
]

Weights = Mapping[str, Tensor]

_TENSORS = "state.safetensors"
_POSITION = "state.json"


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Position:
    """Where a run stands: what is done, and what was measured on the way."""

    epoch: int = 0  # of the next step, from 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # steps of the run that are done
    loss_sum: float = 0.0  # over the labels of this epoch
    labels: int = 0  # of this epoch
    seconds: float = 0.0  # of this epoch
    best_rank: float = 0.0  # the best epoch's, in what epochs compete by; higher is better
    best_epoch: int = 0  # from 1; 0: none is complete
    history: tuple[dict[str, float], ...] = ()  # one entry per complete epoch
    curve: tuple[dict[str, float], ...] = ()  # loss and learning rate along the steps

    def after_step(self, loss_sum: float, labels: int, seconds: float) -> "Position":
        """The position after one more batch, whose `labels` have losses that add to `loss_sum`."""
        return dataclasses.replace(
            self,
            batch=self.batch + 1,
            step=self.step + 1,
            loss_sum=self.loss_sum + loss_sum,
            labels=self.labels + labels,
            seconds=self.seconds + seconds,
        )

    def with_point(self, loss: float, lr: float) -> "Position":
        """The position with one more point of the curve, at the step just done."""
        point = {"step": float(self.step), "loss": loss, "lr": lr}
        return dataclasses.replace(self, curve=(*self.curve, point))

    def after_epoch(self, rank: float, entry: dict[str, float]) -> "Position":
        """The position behind this epoch; it is the best one if `rank` is higher than any."""
        improved = not self.best_epoch or rank > self.best_rank
        return Position(
            epoch=self.epoch + 1,
            step=self.step,
            best_rank=rank if improved else self.best_rank,
            best_epoch=self.epoch + 1 if improved else self.best_epoch,
            history=(*self.history, entry),
            curve=self.curve,
        )


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Written:
    fingerprint: str
    position: Position


_ADAPTER: TypeAdapter[_Written] = TypeAdapter(_Written)


@dataclass(frozen=True)
class StateStore:
    """Saves and loads the state of one run."""

    folder: Path | None  # belongs to the state alone; None: nothing is saved
    fingerprint: str  # of all that a resumed run must share with its beginning
    model: nn.Module
    optimizer: Optimizer
    writes: bool = True  # of several processes one does; all of them load

    def save(self, position: Position, best: Weights) -> None:
        """Write the state; an earlier one is replaced when the new one is complete.

        Args:
            position: how far the run is.
            best: the weights of the best epoch, empty before the first is complete.
        """
        if self.folder is None or not self.writes:
            return
        with new_folder(self.folder, overwrite=True) as partial:
            save_file(self._tensors(best), partial / _TENSORS)
            written = _Written(self.fingerprint, position)
            write_json(partial / _POSITION, dataclasses.asdict(written))

    def load(self) -> tuple[Position, dict[str, Tensor]]:
        """Put the saved state into the model, the optimizer and torch's random generators.

        Returns:
            The position in the run, and the weights of its best epoch so far on the CPU;
            the beginning of a run if nothing is saved.

        Raises:
            CheckpointError: the state is damaged.
            RecipeError: it belongs to a run with other settings or other data.
        """
        if self.folder is None or not has_state(self.folder):
            return Position(), {}
        try:
            written = _ADAPTER.validate_python(read_json(self.folder / _POSITION))
            tensors = load_file(self.folder / _TENSORS)
        except (QuantkitError, ValidationError, SafetensorError, OSError) as problem:
            raise _damaged(self.folder, problem) from None
        if written.fingerprint != self.fingerprint:
            raise RecipeError(
                f"{self.folder} holds a run with other settings, another model or other data. "
                f"Resume it with what it began with, or pass --overwrite to start over."
            )
        try:
            self._restore(tensors)
        except (KeyError, ValueError, RuntimeError) as problem:
            raise _damaged(self.folder, problem) from None
        return written.position, _part(tensors, "best.")

    def _tensors(self, best: Weights) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in _weights(self.model)}
        tensors |= {f"best.{name}": value for name, value in best.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
        tensors |= {f"rng.{name}": value for name, value in _generators().items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def _restore(self, tensors: Weights) -> None:
        load_weights(self.model, _part(tensors, "model."))
        _load_optimizer(self.optimizer, _part(tensors, "optimizer."))
        _set_generators(_part(tensors, "rng."))


def has_state(folder: Path) -> bool:
    """Whether there is a state to go on from; one that a kill left half renamed is put back."""
    put_back(folder)
    return folder.is_dir() and any(folder.iterdir())


def fingerprint_of(model: nn.Module, *parts: object) -> str:
    """SHA-256 of the names and shapes of a model's parameters and of `parts` as JSON."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return hashlib.sha256(json.dumps([shapes, *parts], sort_keys=True).encode()).hexdigest()


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


def _damaged(folder: Path, problem: Exception) -> CheckpointError:
    return CheckpointError(
        f"The training state in {folder} is damaged ({problem}). Pass --overwrite to start over."
    )
