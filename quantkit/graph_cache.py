"""The optimized graph of an ONNX file, kept so that the next session opens without that work.

What ONNX Runtime makes of a file depends on the file, on its own version and on the processor, so
these three name the cached graph, and its own sum is part of the name too: a damaged one is never
opened. It holds what was folded: of a 4-bit file, weights of 8 bits.
"""

import hashlib
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.onnx_file import file_bytes
from quantkit.providers import cpu_flags, import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["cached_graph", "open_cached"]

Opener = Callable[[Path, "onnxruntime.SessionOptions"], "onnxruntime.InferenceSession"]

GROWN = 1.1  # times the file: what is beyond is unfolded weights, not a few added constants


def open_cached(
    path: Path, folder: Path, options: Callable[[], "onnxruntime.SessionOptions"], opener: Opener
) -> "onnxruntime.InferenceSession":
    """Open `path` by its optimized graph in `folder`, which is made if it is not there.

    Args:
        path: of the ONNX file.
        folder: of the cache; made if need be. Anything else in it is left alone.
        options: new options of a session.
        opener: opens a file with such options.

    Warns:
        UserWarning: the graph is much larger than the file, as that of a 4-bit file is; or the
            file keeps its tensors in a second file, and is opened without a cache.
    """
    runtime = import_onnxruntime()
    levels = runtime.GraphOptimizationLevel
    if file_bytes(path) != path.stat().st_size:
        warnings.warn(f"{path} has external data and is opened without a cache.", stacklevel=3)
        return opener(path, options())
    if (found := cached_graph(path, folder)) is not None:
        ready = options()
        ready.graph_optimization_level = levels.ORT_DISABLE_ALL
        return opener(found, ready)
    session = _written(path, folder, options(), opener)
    made = cached_graph(path, folder)
    size, grown = path.stat().st_size, 0 if made is None else made.stat().st_size
    if grown > GROWN * size:
        warnings.warn(
            f"{path} takes {size / 1e6:.1f} MB, and its graph in the cache {grown / 1e6:.1f} MB: "
            f"4-bit weights lie there in 8 bits. Open it without `cache` to save disk space.",
            stacklevel=3,
        )
    return session


def _written(
    path: Path, folder: Path, options: "onnxruntime.SessionOptions", opener: Opener
) -> "onnxruntime.InferenceSession":
    """A session of `path`, whose optimized graph takes the place of a damaged one, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as place:
        written = Path(place) / "graph.onnx"
        options.optimized_model_filepath = str(written)
        session = opener(path, options)
        key = _key(path)
        for damaged in folder.glob(f"{key}-*.onnx"):
            damaged.unlink()
        written.replace(folder / f"{key}-{_sum(written)}.onnx")
    return session


def cached_graph(path: Path, folder: Path) -> Path | None:
    """The undamaged optimized graph of `path` in `folder`, if there is one."""
    for found in sorted(folder.glob(f"{_key(path)}-*.onnx")):
        if found.stem.rpartition("-")[2] == _sum(found):
            return found
    return None


def _key(path: Path) -> str:
    """Names what the optimized graph depends on."""
    machine = " ".join([platform.machine(), *sorted(cpu_flags())])
    parts = (_sum(path), import_onnxruntime().__version__, machine)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
