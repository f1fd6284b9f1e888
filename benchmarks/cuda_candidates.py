"""What `cuda_speed.py` compares: transformers' model in float types, quantkit's engine and files.

A candidate turns padded arrays into a function that computes one batch on the device, and nothing
else.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quantkit
from quantkit.bound import BoundBackend
from quantkit.encoder import describe
from quantkit.engine import TorchBackend
from quantkit.engine.batch import pack
from quantkit.engine.checkpoint import read_checkpoint
from quantkit.errors import CheckpointError, DependencyError
from quantkit.onnx_file import FOLDERS, file_bytes, known_target

__all__ = ["CANDIDATES", "Candidate", "make_candidate"]

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
    "onnxruntime-fp16": ("float", "onnxruntime:cuda", "float16"),
    "onnxruntime-fp16-unpadded": ("float", "onnxruntime:cuda-unpadded", "float16"),
    "onnxruntime-int8": ("w8a8", "onnxruntime:cuda", "int8"),
    "onnxruntime-4bit-weights": ("w4a16", "onnxruntime:cuda", "float16"),
}
COMPILED_STEP = 32  # lengths that a compiled model is made for are multiples of it


@dataclass(frozen=True)
class Candidate:
    """An open model.

    prepare: padded arrays -> what computes them once, on the device; run: padded arrays -> what a
    session would return of them, see `Session.run`; weight_bytes: of parameters and buffers.
    """

    prepare: Callable[[Arrays], Step]
    run: Callable[[Arrays], np.ndarray]
    weight_bytes: int


def make_candidate(name: str, folder: Path, device: torch.device) -> Candidate:
    """Open a candidate; `folder` holds what `make_folders` writes.

    Raises:
        LookupError: this machine lacks what the candidate needs.
    """
    source, kind, _ = CANDIDATES[name]
    if kind.startswith("quantkit:"):
        return _engine(folder / source, kind.removeprefix("quantkit:"), device)
    if kind.startswith("onnxruntime:"):
        return _onnxruntime(folder / source, kind.removeprefix("onnxruntime:"), device)
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


def _onnxruntime(folder: Path, target: str, device: torch.device) -> Candidate:
    """The file of `quantkit export --target TARGET`, with CUDA graphs where it and a GPU allow.

    ONNX Runtime waits for its own stream in each call, which is therefore part of its times. On a
    CPU the target is `cpu`.
    """
    on_gpu = device.type == "cuda"
    place = folder / FOLDERS[known_target(target if on_gpu else "cpu")]
    file = next(iter(sorted(place.glob("*.onnx"))), folder)
    graphs = on_gpu and target == "cuda"
    try:
        session = quantkit.load(file, device=device.type, engine="onnxruntime", graphs=graphs)
    except (CheckpointError, DependencyError) as problem:
        raise LookupError(str(problem)) from None
    backend = session.backend

    def prepare(arrays: Arrays) -> Step:
        if isinstance(backend, BoundBackend):
            return backend.prepared(arrays)
        return lambda: session.run(arrays)

    return Candidate(prepare, session.run, file_bytes(session.path))


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
