"""The packed checkpoint: the integers themselves, as a folder without pickle.

quantkit.safetensors   codes, scales and the float rest; never named model.safetensors,
                       which a plain `from_pretrained` would load as a random model
quantkit.json          format number, plan, recipe, decisions, token limit, sizes
config.json            the model's, with quantization_config {quant_method: quantkit}
tokenizer.json ...     the tokenizer's files
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from quantkit import __version__
from quantkit.encoder import SharedInput, describe, rolled_config, unroll
from quantkit.errors import CheckpointError
from quantkit.files import read_json, write_json
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear
from quantkit.placement import Plan, quantized_calls, swap
from quantkit.ptq import Quantized
from quantkit.recipe import Recipe, parse_recipe, recipe_hash

__all__ = [
    "FORMAT",
    "METADATA",
    "WEIGHTS",
    "Packed",
    "empty_modules",
    "load_packed",
    "read_tensors",
    "save_packed",
]

FORMAT = 1
WEIGHTS = "quantkit.safetensors"
METADATA = "quantkit.json"


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
    tokenizer.save_pretrained(folder)
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
            f"{folder} is not a packed checkpoint: it holds no {METADATA}. "
            f"Make one with: quantkit ptq {folder}"
        )
    metadata = read_json(folder / METADATA)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / METADATA} has format {metadata.get('format')!r}; this quantkit reads "
            f"format {FORMAT}. Upgrade quantkit, or quantize again."
        )
    tensors = read_tensors(folder / WEIGHTS)
    plan = Plan.from_json(metadata["plan"])
    config = AutoConfig.from_pretrained(folder)
    model = unroll(getattr(transformers, config.architectures[0])._from_config(config))
    _drop_pooler(model, tensors)
    swap(model, empty_modules(model, plan, tensors))
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
        parse_recipe(metadata["recipe"], str(folder / METADATA)),
        int(metadata["max_length"]),
        metadata,
    )


def empty_modules(model: nn.Module, plan: Plan, tensors: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Quantized modules of the shapes and dtypes that the checkpoint holds, by module name."""
    encoder = describe(model)
    modules: dict[str, nn.Module] = {
        name: QuantEmbedding(*(_like(tensors, f"{name}.{part}") for part in ("codes", "scale")))
        for name in encoder.embedding.tables
        if plan.quantized(name)
    }
    for calls in quantized_calls(encoder, plan):
        modules |= _empty_linears(calls, tensors)
    return modules


def _empty_linears(
    calls: tuple[SharedInput, ...], tensors: dict[str, Tensor]
) -> dict[str, nn.Module]:
    """The Linears of the same weights, which are stored under the first call's names."""

    def shared_tensor(name: str) -> Tensor | None:
        return _like(tensors, name) if name in tensors else None

    multiplier = shared_tensor(f"{calls[0].linears[0]}.input.multiplier")
    quantizers = []
    for shared in calls:
        prefix = f"{shared.linears[0]}.input"
        scale, zero_point = (_like(tensors, f"{prefix}.{x}") for x in ("scale", "zero_point"))
        quantizers.append(InputQuantizer(scale, zero_point, multiplier))
    modules: dict[str, nn.Module] = {}
    for at, first in enumerate(calls[0].linears):
        codes, scale = _like(tensors, f"{first}.codes"), _like(tensors, f"{first}.scale")
        bias = shared_tensor(f"{first}.bias")
        for shared, quantizer in zip(calls, quantizers, strict=True):
            modules[shared.linears[at]] = QuantLinear(codes, scale, bias, quantizer, owner=at == 0)
    return modules


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


def _like(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(
            f"The packed checkpoint lacks {name}. The folder is damaged: quantize again."
        )
    return torch.empty_like(tensors[name])


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
