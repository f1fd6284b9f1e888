"""What `cuda_speed.py` compares: transformers' model in several float types, and quantkit's engine.

A BERT-shaped classifier gets seeded random weights, since speed and memory depend on the shapes and
not on what the weights say; a checkpoint of one's own can take its place. A candidate turns padded
arrays into a function that computes one batch on the device, and nothing else.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from quantkit.encoder import describe
from quantkit.engine import TorchBackend
from quantkit.engine.batch import pack
from quantkit.engine.checkpoint import read_checkpoint
from quantkit.integers import LARGEST_MULTIPLIER, Integers
from quantkit.layout import FORMAT, METADATA, WEIGHTS
from quantkit.numerics import quantize, scale_and_zero_point, symmetric_grid

__all__ = ["CANDIDATES", "Candidate", "Sizes", "make_candidate", "make_folders", "random_model"]

Arrays = Mapping[str, np.ndarray]
Step = Callable[[], object]

# name -> (where its weights come from, how they are computed with, the peak it is held against)
CANDIDATES = {
    "float32": ("float", "float32", "float32"),
    "tf32": ("float", "tf32", "tf32"),
    "bf16": ("float", "bfloat16", "float16"),
    "fp16": ("float", "float16", "float16"),
    "fp16-compile": ("float", "compile", "float16"),
    "distilbert-fp16-compile": ("distilbert", "compile", "float16"),
    "torchao-int8": ("float", "torchao-int8", "int8"),
    "torchao-fp8": ("float", "torchao-fp8", "float8"),
    "quantkit-fp16": ("float", "quantkit:float16", "float16"),
    "quantkit-fp8": ("float", "quantkit:float8", "float8"),
    "quantkit-int8": ("w8a8", "quantkit:packed", "int8"),
    "quantkit-4bit": ("w4a8", "quantkit:packed", "int8"),
    "quantkit-4bit-weights": ("w4a16", "quantkit:packed", "float16"),
}
GROUP = 64  # inputs that share a multiplier in the 4-bit candidates
COMPILED_STEP = 32  # lengths that a compiled model is made for are multiples of it


@dataclass(frozen=True)
class Sizes:
    """The model; the defaults are BERT-base with the rows that IndoBERT's tokenizer reaches."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocab: int = 30521
    positions: int = 512


@dataclass(frozen=True)
class Candidate:
    """An open model.

    prepare: padded arrays -> what computes them once, on the device; run: padded arrays -> what a
    session would return of them, see `Session.run`; weight_bytes: of parameters and buffers.
    """

    prepare: Callable[[Arrays], Step]
    run: Callable[[Arrays], np.ndarray]
    weight_bytes: int


def random_model(sizes: Sizes, *, distilled: bool = False) -> PreTrainedModel:
    """A classifier of three classes with seeded weights; distilled: half the layers, DistilBERT."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.positions,
        "num_labels": 3,
    }
    if distilled:
        config = DistilBertConfig(
            dim=sizes.hidden,
            hidden_dim=sizes.intermediate,
            n_layers=max(1, sizes.layers // 2),
            n_heads=sizes.heads,
            **common,
        )
        return DistilBertForSequenceClassification(config)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            **common,
        )
    )


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


def make_candidate(name: str, folder: Path, device: torch.device) -> Candidate:
    """Open a candidate; `folder` holds what `make_folders` writes.

    Raises:
        LookupError: this machine lacks what the candidate needs.
    """
    source, kind, _ = CANDIDATES[name]
    if kind.startswith("quantkit:"):
        return _engine(folder / source, kind.removeprefix("quantkit:"), device)
    return _transformers(folder / source, kind, device)


def _engine(folder: Path, precision: Any, device: torch.device) -> Candidate:  # noqa: ANN401
    on_gpu = precision == "float8" and device.type == "cuda"
    if on_gpu and torch.cuda.get_device_capability(device) < (8, 9):
        raise LookupError("this GPU has no float8 products")
    source = read_checkpoint(folder, device)
    backend = TorchBackend(source, precision, device)
    padding = source.plan.embedding.padding
    del source

    def prepare(arrays: Arrays) -> Step:
        batch = pack(arrays, padding, exact=not backend.graphs.replays)
        texts = len(arrays["input_ids"])
        if not backend.graphs.replays:
            return lambda: backend.encoder(batch)[:texts]
        captured = backend.graphs.prepared(batch)
        captured.batch.values.copy_(batch.values)

        def step() -> Tensor:
            captured.graph.replay()
            return captured.output[:texts]

        return step

    return Candidate(prepare, backend.run, backend.encoder.weight_bytes())


def _transformers(folder: Path, kind: str, device: torch.device) -> Candidate:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    import transformers

    types = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
    dtype = types.get(kind, torch.bfloat16 if kind == "torchao-fp8" else torch.float16)
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    model: Any = getattr(transformers, config["architectures"][0]).from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    if kind.startswith("torchao"):
        _quantize_torchao(model, kind)
    # Of a torchao tensor this counts the integers that it holds, not the float it poses as.
    weight_bytes = _storage_bytes(model)
    compiled = kind == "compile" or kind.startswith("torchao")
    call = torch.compile(model, mode="max-autotune", dynamic=False) if compiled else model
    takes = describe(model).arguments

    def prepare(arrays: Arrays) -> Callable[[], Tensor]:
        padded = _stretched(arrays, COMPILED_STEP) if compiled else arrays
        inputs = {name: torch.from_numpy(padded[name]).to(device) for name in takes}

        @torch.inference_mode()
        def step() -> Tensor:
            logits: Tensor = call(**inputs).logits
            return logits

        return step

    def run(arrays: Arrays) -> np.ndarray:
        found: np.ndarray = prepare(arrays)().float().cpu().numpy()
        return found

    return Candidate(prepare, run, weight_bytes)


def _quantize_torchao(model: torch.nn.Module, kind: str) -> None:
    if find_spec("torchao") is None:
        raise LookupError("torchao is not installed")
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    int8 = kind == "torchao-int8"
    config = (
        Int8DynamicActivationInt8WeightConfig()
        if int8
        else Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    )
    quantize_(model, config)


def _storage_bytes(model: torch.nn.Module) -> int:
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    total = 0
    for tensor in tensors:
        inner = getattr(tensor, "__tensor_flatten__", None)
        parts = [tensor] if inner is None else [getattr(tensor, name) for name in inner()[0]]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def _stretched(arrays: Arrays, step: int) -> Arrays:
    """Padded to the next multiple of `step` tokens."""
    length = arrays["input_ids"].shape[1]
    return {name: np.pad(values, ((0, 0), (0, -length % step))) for name, values in arrays.items()}


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
