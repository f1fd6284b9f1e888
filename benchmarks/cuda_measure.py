"""How `cuda_speed.py` measures: times on the device, memory, and the ceilings of the chip."""

import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ceilings",
    "device_facts",
    "full_arrays",
    "given_arrays",
    "host_milliseconds",
    "memory",
    "milliseconds",
]

WARM_UP, LEAST, MOST = 5, 10, 200
SECONDS = 0.4  # of timed calls, about


def milliseconds(step: Callable[[], object], device: torch.device) -> list[float]:
    """Times of single calls, by device events on a GPU; after a warm-up."""
    for _ in range(WARM_UP):
        step()
    first = _timed(step, device, 3)
    count = int(min(max(SECONDS * 1e3 / max(float(np.median(first)), 1e-3), LEAST), MOST))
    return _timed(step, device, count)


def _timed(step: Callable[[], object], device: torch.device, count: int) -> list[float]:
    if device.type != "cuda":
        found = []
        for _ in range(count):
            begin = time.perf_counter()
            step()
            found.append(1e3 * (time.perf_counter() - begin))
        return found
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) for a, b in pairwise(marks)]


def host_milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """The median time that a call takes to come back, however long the GPU goes on then."""
    found = []
    for _ in range(LEAST):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        step()
        found.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(found))


def memory(device: torch.device) -> dict[str, int | None]:
    """Peak bytes that torch has held, and what the driver says is taken now by everybody."""
    if device.type != "cuda":
        return {"torch_peak": None, "torch_reserved": None, "driver_used": None}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "torch_peak": torch.cuda.max_memory_allocated(device),
        "torch_reserved": torch.cuda.max_memory_reserved(device),
        "driver_used": total - free,
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, driver and versions, which every figure depends on."""
    versions = {"torch": torch.__version__}
    if device.type != "cuda":
        return {"name": "cpu", **versions}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    import triton

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        **versions,
    }


def full_arrays(batch: int, length: int, vocab: int) -> dict[str, np.ndarray]:
    """Seeded token ids without padding."""
    return given_arrays([length] * batch, vocab)


def given_arrays(lengths: Sequence[int], vocab: int) -> dict[str, np.ndarray]:
    """Seeded token ids of texts with these lengths, padded on the right."""
    ids = np.random.default_rng(0).integers(5, vocab, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def ceilings(device: torch.device, size: int = 8192) -> dict[str, float]:
    """Measured peaks: operations per second of large products, bytes per second of a copy.

    Random data: a product of zeros draws less power and is faster than any real one.
    """
    found: dict[str, float] = {}
    for name, step in _products(device, size).items():
        try:
            found[name] = 2.0 * size**3 / (1e-3 * float(np.median(milliseconds(step, device))))
        except (RuntimeError, NotImplementedError):  # a product that this device lacks
            continue
    source = torch.randn(size * size, device=device)
    target = torch.empty_like(source)
    seconds = 1e-3 * float(np.median(milliseconds(lambda: target.copy_(source), device)))
    found["bytes"] = 2.0 * source.numel() * source.element_size() / seconds
    return found


def _products(device: torch.device, size: int) -> dict[str, Callable[[], Tensor]]:
    a, b = (torch.randn((size, size), device=device) for _ in range(2))
    codes = [(x * 30).clamp(-127, 127).to(torch.int8) for x in (a, b)]

    def product(dtype: torch.dtype) -> Callable[[], Tensor]:
        x, y = a.to(dtype), b.to(dtype)
        return lambda: x @ y.t()

    def with_tf32() -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return a @ b.t()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    steps: dict[str, Callable[[], Tensor]] = {
        "float32": product(torch.float32),
        "float16": product(torch.float16),
        "int8": lambda: torch._int_mm(codes[0], codes[1].t()),
    }
    if device.type == "cuda":
        steps["tf32"] = with_tf32
        eights = [x.to(torch.float8_e4m3fn) for x in (a, b)]
        ones: list[Any] = [torch.ones(shape, device=device) for shape in ((size, 1), (1, size))]
        steps["float8"] = lambda: torch._scaled_mm(
            eights[0],
            eights[1].t(),
            scale_a=ones[0],
            scale_b=ones[1],
            out_dtype=torch.bfloat16,
        )
    return steps
