"""Models for `cuda_speed.py` and `cuda_training.py`, of seeded random weights.

Speed and memory depend on the shapes and not on what the weights say; checkpoints of one's own can
take their place.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import bert_sizes
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.encoder import describe
from quantkit.integers import LARGEST_MULTIPLIER, Integers
from quantkit.layout import FORMAT, METADATA, WEIGHTS
from quantkit.numerics import quantize, scale_and_zero_point, symmetric_grid

__all__ = ["Sizes", "make_folders", "random_model"]

GROUP = 64  # inputs that share a multiplier in the 4-bit candidates


@dataclass(frozen=True)
class Sizes(bert_sizes.Sizes):
    """A model with so many positions."""

    positions: int = 512


def random_model(sizes: Sizes, *, distilled: bool = False) -> PreTrainedModel:
    """A classifier of three classes with seeded weights; distilled: half the layers, DistilBERT."""
    if distilled:
        sizes = replace(sizes, layers=max(1, sizes.layers // 2))
    return bert_sizes.random_model(sizes, distilled=distilled, positions=sizes.positions)


def make_folders(sizes: Sizes, folder: Path) -> None:
    """Write the float model, DistilBERT's shape, and packed models of 8 and 4 bits.

    The codes are plain nearest ones and the input scales are guessed: enough for time and memory,
    and no statement on accuracy. A folder that is there already is kept.
    """
    model = random_model(sizes)
    for name, made in (("float", model), ("distilbert", random_model(sizes, distilled=True))):
        if not (folder / name / "config.json").is_file():
            made.save_pretrained(folder / name)
    for name, bits, inputs in (("w8a8", 8, 8), ("w4a8", 4, 8), ("w4a16", 4, 16)):
        if not (folder / name / METADATA).is_file():
            _write_packed(model, folder / name, bits, inputs)


def _write_packed(model: PreTrainedModel, folder: Path, bits: int, inputs: int) -> None:
    """A packed folder, as far as the engine reads it."""
    plan = describe(model)
    tensors = dict(model.state_dict())
    left_in_float = () if plan.head.classifier is None else plan.head.classifier.linears
    for shared in plan.inputs():
        for name in shared.linears:
            if name in left_in_float:
                continue
            matrix = _nearest(tensors.pop(f"{name}.weight"), bits)
            tensors |= _stored(name, matrix)
        if inputs == 8 and shared.linears[0] not in left_in_float:
            tensors[f"{shared.linears[0]}.input.scale"] = torch.tensor(0.04)
            tensors[f"{shared.linears[0]}.input.zero_point"] = torch.tensor(128, dtype=torch.uint8)
    for table in plan.embedding.tables:
        few = 8 if table != plan.embedding.words else bits
        tensors |= _stored(table, _nearest(tensors.pop(f"{table}.weight"), few))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    activations = {"bits": inputs, "per": "tensor"}
    about = {"format": FORMAT, "recipe": {"activations": activations}, "max_length": 512}
    (folder / METADATA).write_text(json.dumps(about), "utf-8")


def _nearest(weight: Tensor, bits: int) -> Integers:
    """Nearest codes by the rows' largest values; 4 bits in two levels where groups fit."""
    bound = weight.abs().amax(1, keepdim=True)
    grid, zero = symmetric_grid(bits), torch.zeros((), dtype=torch.int8)
    columns = weight.shape[1]
    if bits == 8 or columns % GROUP:
        scale, _ = scale_and_zero_point(-bound, bound, grid)
        return Integers.of(quantize(weight, scale, zero, grid), scale, bits)
    narrow = bound / LARGEST_MULTIPLIER
    scale, _ = scale_and_zero_point(-narrow, narrow, grid)
    grouped = weight.view(len(weight), -1, GROUP)
    wanted = grouped.abs().amax(2) / (scale * grid.qmax)
    multipliers = wanted.ceil().clamp(1, LARGEST_MULTIPLIER).to(torch.int8)
    step = (scale * multipliers)[:, :, None]
    codes = quantize(grouped, step, zero, grid).flatten(1)
    return Integers.of(codes, scale, bits, multipliers)


def _stored(name: str, matrix: Integers) -> dict[str, Tensor]:
    parts = {"codes": matrix.stored, "scale": matrix.scale, "multipliers": matrix.multipliers}
    return {f"{name}.{part}": value for part, value in parts.items() if value is not None}
