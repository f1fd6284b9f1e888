"""The packed checkpoint: the integers themselves, as a folder without pickle.

quantkit.safetensors   codes, scales and the float rest; never named model.safetensors,
                       which a plain `from_pretrained` would load as a random model
quantkit.json          format number, plan, recipe, decisions, token limit, sizes
config.json            the model's, with quantization_config {quant_method: quantkit}
tokenizer.json ...     the tokenizer's files
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from quantkit import __version__
from quantkit.encoder import SharedInput, describe, rolled_config, unroll
from quantkit.errors import CheckpointError
from quantkit.files import write_json
from quantkit.integers import Integers
from quantkit.layout import FORMAT, METADATA, WEIGHTS, read_metadata, read_tensors
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear, TokenQuantizer
from quantkit.placement import Plan, quantized_calls, swap
from quantkit.ptq import Quantized
from quantkit.recipe import Recipe, parse_recipe, recipe_hash
from quantkit.tokenizer_files import save_tokenizer

__all__ = [
    "FORMAT",
    "METADATA",
    "WEIGHTS",
    "Packed",
    "empty_modules",
    "load_packed",
    "read_tensors",
    "rotations_of",
    "save_packed",
]


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    recipe: Recipe
    max_length: int
    metadata: dict[str, Any]


def save_packed(
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    max_length: int,
) -> None:
    """Write a packed checkpoint into `folder`, which exists; see `files.new_folder`.

    Weights that several calls share are stored once, under the first call's names.
    """
    model = quantized.model
    tensors = {name: tensor.contiguous() for name, tensor in _distinct(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = rolled_config(model)
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = {"quant_method": "quantkit", "format": FORMAT}
    write_json(folder / "config.json", config)
    save_tokenizer(tokenizer, folder)
    write_json(
        folder / METADATA,
        {
            "format": FORMAT,
            "quantkit_version": __version__,
            "recipe": asdict(quantized.recipe),
            "recipe_hash": recipe_hash(quantized.recipe),
            "max_length": max_length,
            "trimmed_rows": quantized.trimmed_rows,
            "plan": quantized.plan.to_json(),
            "decisions": quantized.decisions_json(),
            "notes": list(quantized.notes),
        },
    )


def load_packed(folder: str | Path) -> Packed:
    """Load a packed checkpoint; every tensor equals the saved one bit for bit.

    Raises:
        CheckpointError: not a packed checkpoint, of a newer format, or damaged.
    """
    folder = Path(folder)
    if not (folder / METADATA).is_file():
        raise CheckpointError(
            f"{folder} is not a packed checkpoint: it holds no {METADATA}. Make one of a run with "
            f"quantkit ptq RUN, of any model with quantkit ptq --checkpoint MODEL --texts FILE."
        )
    metadata = read_metadata(folder)
    tensors = read_tensors(folder / WEIGHTS)
    plan = Plan.from_json(metadata["plan"])
    config = AutoConfig.from_pretrained(folder)
    model = unroll(getattr(transformers, config.architectures[0])._from_config(config))
    _drop_pooler(model, tensors)
    recipe = parse_recipe(metadata["recipe"], str(folder / METADATA))
    swap(model, empty_modules(model, plan, recipe, tensors, rotations_of(metadata)))
    if odd := sorted(_distinct(model).keys() ^ tensors.keys()):
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit its {METADATA}: {odd[0]} is in only one of them. "
            f"The folder is damaged: quantize again."
        )
    model.load_state_dict(tensors, strict=False)  # shared ones are not missing: see `_distinct`
    return Packed(
        model.train(False),
        AutoTokenizer.from_pretrained(folder),
        plan,
        recipe,
        int(metadata["max_length"]),
        metadata,
    )


def empty_modules(
    model: nn.Module,
    plan: Plan,
    recipe: Recipe,
    tensors: dict[str, Tensor],
    rotations: Mapping[str, int],
) -> dict[str, nn.Module]:
    """Quantized modules of the shapes and dtypes that the checkpoint holds, by module name.

    `rotations` are those of `rotations_of`.
    """
    encoder = describe(model)
    stored = _Stored(tensors)
    modules: dict[str, nn.Module] = {
        name: _empty_embedding(name, bits, stored)
        for name in encoder.embedding.tables
        if (bits := plan.bits(name)) is not None
    }
    for calls in quantized_calls(encoder, plan):
        rotation = rotations.get(calls[0].linears[0])
        modules |= _empty_linears(calls, plan, recipe, stored, rotation)
    return modules


def rotations_of(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The block of each rotated input, by its first Linear, from a checkpoint's `METADATA`."""
    decisions = metadata.get("decisions", [])
    return {d["linears"][0]: int(d["rotation"]) for d in decisions if d.get("rotation")}


@dataclass(frozen=True)
class _Stored:
    """Tensors of a file, as templates for the buffers that they will fill."""

    tensors: dict[str, Tensor]

    def like(self, name: str) -> Tensor:
        """An empty tensor of the shape and dtype of one that has to be there."""
        if name not in self.tensors:
            raise CheckpointError(
                f"The packed checkpoint lacks {name}. The folder is damaged: quantize again."
            )
        return torch.empty_like(self.tensors[name])

    def maybe(self, name: str) -> Tensor | None:
        """The same, or None if it is not there."""
        return self.like(name) if name in self.tensors else None

    def integers(self, module: str, bits: int) -> Integers:
        """An empty matrix."""
        codes, scale = (self.like(f"{module}.{part}") for part in ("codes", "scale"))
        return Integers(codes, scale, bits, self.maybe(f"{module}.multipliers"))


def _empty_embedding(name: str, bits: int, stored: _Stored) -> QuantEmbedding:
    rows, codes = (stored.maybe(f"{name}.frequent_{part}") for part in ("rows", "codes"))
    return QuantEmbedding(stored.integers(name, bits), rows, codes)


def _empty_linears(
    calls: tuple[SharedInput, ...],
    plan: Plan,
    recipe: Recipe,
    stored: _Stored,
    rotation: int | None,
) -> dict[str, nn.Module]:
    """The Linears of the same weights, which are stored under the first call's names."""
    multiplier = stored.maybe(f"{calls[0].linears[0]}.input.multiplier")
    quantizers = [
        _empty_quantizer(f"{shared.linears[0]}.input", recipe, multiplier, rotation, stored)
        for shared in calls
    ]
    modules: dict[str, nn.Module] = {}
    for at, first in enumerate(calls[0].linears):
        integers, bias = (
            stored.integers(first, plan.bits(first) or 8),
            stored.maybe(f"{first}.bias"),
        )
        for shared, quantizer in zip(calls, quantizers, strict=True):
            modules[shared.linears[at]] = QuantLinear(integers, bias, quantizer, owner=at == 0)
    return modules


def _empty_quantizer(
    prefix: str,
    recipe: Recipe,
    multiplier: Tensor | None,
    rotation: int | None,
    stored: _Stored,
) -> InputQuantizer | TokenQuantizer | None:
    bits = recipe.activations.bits
    if bits == 16:
        return None
    if recipe.activations.per == "token":
        return TokenQuantizer(multiplier, bits, rotation)
    scale, zero_point = (stored.like(f"{prefix}.{part}") for part in ("scale", "zero_point"))
    return InputQuantizer(scale, zero_point, multiplier, bits, rotation)


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without the further names of tensors that it shares."""
    seen: set[tuple[int, torch.Size]] = set()
    result = {}
    for name, tensor in model.state_dict().items():
        place = tensor.data_ptr(), tensor.shape
        if place not in seen:
            result[name] = tensor
        seen.add(place)
    return result


def _drop_pooler(model: Any, tensors: dict[str, Tensor]) -> None:  # noqa: ANN401
    """Features read no pooler, so a bare encoder may have been made and saved without one."""
    if isinstance(getattr(model, "pooler", None), nn.Module) and not any(
        name.startswith("pooler.") for name in tensors
    ):
        model.pooler = None
