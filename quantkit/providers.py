"""ONNX Runtime as serving wants it: one import, one set of options, the machine's features."""

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import DependencyError

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "EXACT_PRODUCTS",
    "available_threads",
    "cpu_flags",
    "host_operators",
    "import_onnxruntime",
    "load_cuda_libraries",
    "provider",
    "session_options",
]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# What sizes are computed with: ONNX Runtime leaves that to the host where it needs no copy.
_OF_SIZE_NAMES = """
Add Cast Concat ConstantOfShape Div Equal Gather Max Min Mod Mul Range Reshape Shape Size Slice
Squeeze Sub Unsqueeze Where
"""
_OF_SIZES = frozenset(_OF_SIZE_NAMES.split())

# Processor features whose 8-bit products accumulate in 32 bits: VNNI, AMX, and Arm's NEON.
EXACT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimd"})


def provider(device: str) -> str:
    """ONNX Runtime's name of the provider that runs on `device`.

    Raises:
        DependencyError: the installed onnxruntime lacks it.
    """
    name = _PROVIDERS.get(device, "")
    if name not in import_onnxruntime().get_available_providers():
        raise DependencyError(
            f"This onnxruntime has no {device!r} provider. Install the right one: "
            f"pip install 'quantkit[{'gpu' if device == 'cuda' else 'cpu'}]'"
        )
    return name


def load_cuda_libraries() -> str:
    """Load CUDA's and cuDNN's libraries out of NVIDIA's Python packages, where they lie there.

    ONNX Runtime does not look for them by itself.

    Returns:
        What it says of those that it has not found; "" of nothing.
    """
    said = StringIO()
    with redirect_stdout(said):
        import_onnxruntime().preload_dlls()
    return said.getvalue().strip()


def host_operators(inference: "onnxruntime.InferenceSession") -> Mapping[str, int]:
    """Operators of an open file, by type, that run on the host though the session is on a GPU.

    Without those that compute sizes. Every tensor that they read or write is copied.

    Args:
        inference: opened with the `session_options` of a device that is not `cpu`.
    """
    found: Counter[str] = Counter()
    for part in inference.get_provider_graph_assignment_info():
        if part.ep_name == _PROVIDERS["cpu"]:
            found.update(node.op_type for node in part.get_nodes())
    return {name: count for name, count in found.items() if name not in _OF_SIZES}


def session_options(
    threads: int | None = None, device: str = "cpu"
) -> "onnxruntime.SessionOptions":
    """Options that every session of an exported file should have."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.log_severity_level = 3
    # Float inputs stay float: else ONNX Runtime rounds them to 8 bits for weights that lie as
    # QuantizeLinear pairs (off by 1 % of a product's range, 1.31.1).
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if device != "cpu":  # for `host_operators`
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Without VNNI, u8 x s8 products saturate in 16 bits and this switch makes them exact. With
    # it they are exact anyway, and the switch made int8 BERT-base 1.7 times slower (1.31.1).
    if not cpu_flags() & EXACT_PRODUCTS:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def cpu_flags() -> frozenset[str]:
    """Features of this machine's processor, as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":") for line in lines)
    names = {"flags", "Features"}  # x86, Arm
    return frozenset(f for key, _, value in found if key.strip() in names for f in value.split())


def available_threads() -> int:
    """CPUs this process may use: its affinity, cut by the control group's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            return max(1, min(count or 1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control groups here
    return count or 1


def import_onnxruntime() -> Any:  # noqa: ANN401
    """The onnxruntime module.

    Raises:
        DependencyError: it is missing, or its CPU and GPU packages lie over each other.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(installed) == 2:
        raise DependencyError(
            "Both onnxruntime and onnxruntime-gpu are installed. They write the same files and "
            "break each other: pip uninstall -y onnxruntime onnxruntime-gpu, then install one, "
            "pip install 'quantkit[cpu]' or pip install 'quantkit[gpu]'."
        )
    if find_spec("onnxruntime") is None:
        raise DependencyError(
            "onnxruntime is not installed. pip install 'quantkit[cpu]' for CPUs, or "
            "pip install 'quantkit[gpu]' for NVIDIA GPUs."
        )
    import onnxruntime

    return onnxruntime


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
