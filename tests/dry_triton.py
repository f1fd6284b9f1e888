"""Triton's kernels on a machine without a GPU: compiled as they would be started, and not run.

Tensors lie on the `meta` device, which has no data: what asks for a number of theirs, as a CUDA
graph forbids, is an error, and so is work on tensors of two devices.
"""

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantkit.kernels.tuning import MIDDLING, Tiles

__all__ = ["Launch", "record", "spilled"]

MODULES = (
    "attention",
    "embedding",
    "fake_quant",
    "fake_weights",
    "inputs",
    "layer_norm",
    "product",
)
MOST_SHARED = 227 * 1024  # bytes that a block may have on compute capability 9.0
LARGEST_GRID = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Launch:
    """A kernel as it would be started."""

    name: str
    grid: tuple[int, ...]
    compiled: Any

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return int(self.compiled.metadata.shared)


class _Driver:
    """What Triton asks of a GPU before it compiles."""

    def get_current_target(self) -> Any:  # noqa: ANN401
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        del device
        return 0


class _Pointer:
    """A tensor as far as compiling wants to know it: torch aligns what it allocates."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return 256 + self._offset


def record(monkeypatch: pytest.MonkeyPatch, tried: Sequence[Tiles] | None = None) -> list[Launch]:
    """The list that launches are written into from now on.

    Args:
        monkeypatch: undoes it.
        tried: tiles that every product is started with; default: what it falls back to itself.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    started = JITFunction.run

    def run(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **settings: Any) -> None:  # noqa: ANN401
        del warmup
        tensors = [each for each in args if isinstance(each, Tensor)]
        assert all(each.is_meta and each.is_contiguous() for each in tensors), self.fn.__name__
        assert all(0 < size <= most for size, most in zip(grid, LARGEST_GRID, strict=False))
        given = [_Pointer(each) if isinstance(each, Tensor) else each for each in args]
        compiled = started(self, *given, grid=grid, warmup=True, **settings)
        whole = compiled.result() if hasattr(compiled, "result") else compiled
        launches.append(Launch(self.fn.__name__, tuple(grid), whole))

    def tiles_for(
        key: object,
        tokens: int,
        run: Callable[[Tiles], None],
        device: torch.device,
        known: Sequence[Tiles],
    ) -> Tiles:
        del key, tokens, device
        *before, last = tried or [known[MIDDLING]]
        for tiles in before:
            run(tiles)
        return last

    monkeypatch.setattr(driver, "_active", _Driver())
    monkeypatch.setattr(JITFunction, "run", run)
    for name in MODULES:
        module = importlib.import_module(f"quantkit.kernels.{name}")
        monkeypatch.setattr(module, "uses_triton", lambda _: True)
    monkeypatch.setattr(importlib.import_module("quantkit.kernels.product"), "tiles_for", tiles_for)
    return launches


def spilled(launch: Launch) -> int:
    """Bytes a thread that do not fit into registers, by NVIDIA's assembler."""
    import triton

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(launch.compiled.asm["ptx"], "utf-8")
        command = [str(assembler), "-v", "--gpu-name=sm_90a", str(source), "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.search(r"(\d+) bytes spill stores", said)
    assert found is not None
    return int(found[1])
