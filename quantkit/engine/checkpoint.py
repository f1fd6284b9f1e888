"""A packed or float checkpoint as plain tensors and a plan.

transformers' class is made on the `meta` device only, for its module names and settings.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from quantkit.encoder import (
    EncoderPlan,
    SharedInput,
    activation_of,
    describe,
    head_of,
    unroll,
)
from quantkit.errors import CheckpointError
from quantkit.files import read_json
from quantkit.heads import Head
from quantkit.integers import Integers
from quantkit.kernels import FLOATS, Function, Reads
from quantkit.layout import METADATA, WEIGHTS, read_metadata, read_tensors

__all__ = ["Checkpoint", "read_checkpoint"]

MOST_TOKENS = 512  # of a checkpoint whose tokenizer names no limit


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by the names of the modules that they belong to, and what is to be done with them.

    function: of the layers' intermediate product; eps: of each LayerNorm; bits and per: of the
    products' inputs, where these are quantized.
    """

    path: Path
    plan: EncoderPlan
    tensors: Mapping[str, Tensor]
    function: Function
    eps: Mapping[str, float]
    bits: int
    per: str
    head: Head
    max_length: int

    def integers(self, module: str) -> Integers | None:
        """A module's integers, or None if it is in float."""
        stored = self.tensors.get(f"{module}.codes")
        if stored is None:
            return None
        bits = 4 if stored.dtype == torch.uint8 else 8
        multipliers = self.tensors.get(f"{module}.multipliers")
        return Integers(stored, self.tensors[f"{module}.scale"], bits, multipliers)

    def reads(self, shared: SharedInput, first: SharedInput) -> Reads:
        """How a quantized input is read; `first` is the call that its weights are stored under."""
        name = shared.linears[0]
        multiplier = self.tensors.get(f"{first.linears[0]}.input.multiplier")
        if self.bits == 16:
            return FLOATS
        if self.per == "token":
            return Reads.token(
                multiplier, self.bits, self.tensors[f"{first.linears[0]}.codes"].device
            )
        scale, zero_point = (
            self.tensors[f"{name}.input.{part}"] for part in ("scale", "zero_point")
        )
        return Reads.static(scale, zero_point, multiplier, self.bits)


def read_checkpoint(folder: Path, device: torch.device) -> Checkpoint:
    """Read a folder with `quantkit.safetensors`, or else a Hugging Face float model's.

    Raises:
        CheckpointError: neither is there, it is of a newer format or a family not known, or its
            inputs are rotated.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no checkpoint: it has no config.json. Pass the folder of a packed or "
            f"a float model."
        )
    skeleton = _skeleton(folder)
    plan = describe(skeleton)
    packed = (folder / METADATA).is_file()
    metadata = read_metadata(folder) if packed else {}
    tensors = read_tensors(folder / WEIGHTS) if packed else _float_tensors(folder, type(skeleton))
    activations = metadata.get("recipe", {}).get("activations", {})
    if activations.get("rotation") is not None:
        raise CheckpointError(
            f"{folder} has activations.rotation {activations['rotation']!r}, which the engine has "
            f"no kernel for. Use its ONNX file or quantkit.load_packed, or quantize again with "
            f"--set activations.rotation=null."
        )
    limit = metadata.get("max_length")
    modules = dict(skeleton.named_modules())
    norms = [plan.embedding.norm]
    for layer in plan.layers:
        norms += [layer.attention_norm, layer.output_norm]
    eps: dict[str, Any] = {name: modules[name].eps for name in norms}
    return Checkpoint(
        folder / (WEIGHTS if packed else "model.safetensors"),
        plan,
        {name: tensor.to(device) for name, tensor in tensors.items()},
        _function(modules[plan.layers[0].activation]),
        eps,
        int(activations.get("bits", 8)),
        str(activations.get("per", "tensor")),
        head_of(skeleton),
        _most_tokens(folder, skeleton, plan) if limit is None else int(limit),
    )


def _skeleton(folder: Path) -> PreTrainedModel:
    """The model of the folder's config.json, without memory."""
    config: Any = AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        raise CheckpointError(
            f"{folder / 'config.json'} names no architecture that transformers has: "
            f"{config.architectures}. Save the model with save_pretrained."
        )
    with torch.device("meta"):
        return unroll(kind._from_config(config))


def _float_tensors(folder: Path, kind: type[PreTrainedModel]) -> dict[str, Tensor]:
    """A float model's state by the names of its unrolled modules."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as problem:
        raise CheckpointError(
            f"{folder} holds neither a packed nor a float checkpoint: {problem}"
        ) from None
    state: dict[str, Tensor] = unroll(model).state_dict()
    return state


def _function(module: nn.Module) -> Function:
    known = activation_of(module)
    if known is None:
        raise CheckpointError(
            f"The layers' activation is a {type(module).__name__}; the engine knows GELU (exact "
            f"and tanh) and ReLU. Check `hidden_act` in the checkpoint's config.json, or export "
            f"it to ONNX."
        )
    return known


def _most_tokens(folder: Path, model: PreTrainedModel, plan: EncoderPlan) -> int:
    """What fits into the position table and what the tokenizer says."""
    config: Any = model.config
    padding = plan.embedding.padding
    positions = int(config.max_position_embeddings) - (0 if padding is None else padding + 1)
    source = folder / "tokenizer_config.json"
    said = read_json(source).get("model_max_length") if source.is_file() else None
    return min(positions, MOST_TOKENS if said is None else int(said))
