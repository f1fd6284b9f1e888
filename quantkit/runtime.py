"""A folder that answers texts: by default with tokenizers, numpy and onnxruntime, without torch.

session = quantkit.load("runs/smsa/int8")
session.predict(["makanannya enak sekali"])   # [Prediction(label='positive', score=0.98)]
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from quantkit.answers import Prediction
from quantkit.bound import BoundBackend
from quantkit.choice import fastest
from quantkit.errors import CheckpointError, DependencyError, RecipeError
from quantkit.graph_cache import open_cached
from quantkit.memory import return_freed_memory
from quantkit.onnx_file import (
    TARGETS,
    Interface,
    ModelFile,
    exported_targets,
    find_onnx,
    folder_of,
    output_name,
    read_tokenizer,
    target_of,
)
from quantkit.openvino_backend import OpenvinoBackend, open_portable
from quantkit.providers import (
    available_threads,
    cpu_flags,
    host_operators,
    import_onnxruntime,
    load_cuda_libraries,
    provider,
    session_options,
)
from quantkit.session import Backend, Session

if TYPE_CHECKING:
    import onnxruntime

ENGINES = ("auto", "onnxruntime", "openvino", "torch")
DEVICES = ("cpu", "cuda")

__all__ = [
    "ENGINES",
    "OnnxBackend",
    "Prediction",
    "Session",
    "available_threads",
    "check_engine",
    "cpu_flags",
    "find_onnx",
    "import_onnxruntime",
    "load",
    "session_options",
]


class OnnxBackend:
    """An ONNX file that is open in ONNX Runtime."""

    def __init__(self, inference: "onnxruntime.InferenceSession", output: str) -> None:
        self._inference = inference
        self._inputs = tuple(value.name for value in inference.get_inputs())
        self._output = output

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The file's own output, as float32."""
        feeds = {name: arrays[name] for name in self._inputs}
        outputs: list[np.ndarray] = self._inference.run([self._output], feeds)
        return outputs[0].astype(np.float32, copy=False)


def load(
    folder: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    cache: str | Path | None = None,
    engine: str = "auto",
    precision: str | None = None,
    graphs: bool = False,
) -> Session:
    """Open a folder that `quantkit` has written.

    Args:
        folder: holds `onnx/`, `tokenizer.json` and `config.json`; or one of its .onnx files. For
            OpenVINO with a file of the portable target; for the torch engine: a packed or float
            checkpoint.
        device: `cpu` or `cuda`; an ONNX file must have been exported for it, or be portable.
        threads: of the CPU; default: what the machine's CPU quota gives.
        cache: folder in which ONNX Runtime's optimized graph, or what OpenVINO compiled, is kept
            for the next session on such a CPU. ONNX Runtime's graph of a 4-bit file has 8 bits
            there, and a warning says so.
        engine: `onnxruntime`; `openvino`, on the CPU; `torch`, which reads the checkpoint itself
            and runs Triton kernels; or `auto`: ONNX Runtime on the CPU, and on CUDA what measures
            fastest when the folder is opened: ONNX Runtime with and without graphs, the torch
            engine, and that in float16. The times are in `notes`.
        precision: of the torch engine, see `quantkit.engine.open_session`.
        graphs: on CUDA, ONNX Runtime keeps inputs and outputs on the device and replays a CUDA
            graph for each size of batch, see `quantkit.bound`. The torch engine always does.

    Raises:
        CheckpointError: no such file, one exported for another device, or one that does not
            say what it answers.
        DependencyError: a package is missing or installed twice, or the device is.
        RecipeError: an engine or device that does not exist, or graphs on a CPU.
    """
    check_engine(engine, device)
    if graphs and device != "cuda":
        raise RecipeError("graphs are CUDA's. Pass device='cuda', or leave them out.")
    if engine == "openvino":
        return _load_openvino(Path(folder), threads, cache)
    if engine == "torch":
        return _load_torch(Path(folder), device, precision)
    if engine == "auto" and device == "cuda":
        return _fastest_on_cuda(Path(folder), threads, precision, graphs)
    return _load_onnx(Path(folder), device, threads, cache, graphs)


def check_engine(engine: str, device: str) -> None:
    """Check the names of an engine and a device.

    Raises:
        RecipeError: one that does not exist, or OpenVINO on a GPU.
    """
    for name, value, known in (("engine", engine, ENGINES), ("device", device, DEVICES)):
        if value not in known:
            raise RecipeError(f"{name} is {value!r}; quantkit knows {', '.join(known)}.")
    if engine == "openvino" and device != "cpu":
        raise RecipeError("OpenVINO runs on the CPU here. Pass device='cpu', or another engine.")


def _fastest_on_cuda(
    path: Path, threads: int | None, precision: str | None, graphs: bool
) -> Session:
    """The session that measures fastest here, with all times in its notes."""
    onnx = partial(_load_onnx, path, "cuda", threads, None)
    opening: dict[str, Callable[[], Session]] = {
        "torch": partial(_load_torch, path, "cuda", precision),
        "onnxruntime": partial(onnx, graphs),
    }
    targets = exported_targets(path) if path.is_dir() else [target_of(path)]
    if not graphs and "cuda" in targets:
        opening["onnxruntime with graphs"] = partial(onnx, True)
    if path.is_dir() and precision is None:
        opening["torch float16"] = partial(_load_torch, path, "cuda", "float16")
    choice = fastest(opening)
    choice.session.notes = choice.notes()
    return choice.session


def _load_torch(folder: Path, device: str, precision: Any) -> Session:  # noqa: ANN401
    """A session of the torch engine, which this module must not import by itself."""
    try:
        engine: Any = import_module("quantkit.engine")
    except ImportError as problem:
        raise DependencyError(
            f"The torch engine cannot be imported ({problem}). pip install 'quantkit[train]'"
        ) from None
    session: Session = engine.open_session(folder, device, precision)
    return session


def _load_onnx(
    folder: Path, device: str, threads: int | None, cache: str | Path | None, graphs: bool
) -> Session:
    """A session of ONNX Runtime."""
    name = provider(device)
    missing = load_cuda_libraries() if device == "cuda" else ""
    settings = {"enable_cuda_graph": "1"} if graphs else {}
    path = find_onnx(folder, device)

    def opened(file: Path, options: "onnxruntime.SessionOptions") -> Any:  # noqa: ANN401
        return import_onnxruntime().InferenceSession(
            str(file), options, providers=[(name, settings)]
        )

    try:
        if cache is None or device != "cpu":
            inference = opened(path, session_options(threads, device))
        else:
            inference = open_cached(path, Path(cache), lambda: session_options(threads), opened)
    except Warning:  # where warnings are errors
        raise
    except Exception as problem:  # onnxruntime raises classes of its own, without a base
        if device != "cpu" and provider("cpu") in str(problem):  # where no CPU has a kernel
            raise _no_libraries(path, provider("cpu"), name, missing) from None
        raise CheckpointError(f"{path} cannot be opened: {problem}. Export it again.") from None
    _check_place(inference, path, device, missing)
    return_freed_memory()  # what unfolding 4-bit weights took is twice what they take then
    tokenizer = read_tokenizer(path)
    file = _checked(ModelFile.read(Interface.of(inference), tokenizer, path), path, device)
    output = output_name(file.head)
    backend: Backend = OnnxBackend(inference, output)
    if graphs and file.target == "cuda-unpadded":
        raise CheckpointError(
            f"{path} leaves padding out, and so counts tokens on the host, which CUDA graphs "
            f"forbid. Load it without graphs, or export the model with --target cuda."
        )
    if graphs:
        backend = BoundBackend(
            inference, output, device=device, longest=file.max_length, padding=file.padding
        )
    return _session(backend, tokenizer, file, path)


def _check_place(
    inference: "onnxruntime.InferenceSession", path: Path, device: str, missing: str
) -> None:
    """Refuse a session that runs elsewhere than it should; ONNX Runtime falls back silently."""
    wanted, found = provider(device), inference.get_providers()[0]
    if found != wanted:
        raise _no_libraries(path, found, wanted, missing)
    if device == "cpu":
        return
    if host := host_operators(inference):
        listed = ", ".join(f"{count} {name}" for name, count in host.items())
        raise CheckpointError(
            f"{path} would run on the host, with copies, at {listed}: onnxruntime "
            f"{import_onnxruntime().__version__} has no {device} kernels for them. Export it "
            f"again: quantkit export {folder_of(path)} --target {TARGETS[device][0]} (which needs "
            f"onnxruntime-gpu 1.27; with --target cuda-unpadded 1.24)"
        )


def _no_libraries(path: Path, found: str, wanted: str, missing: str) -> DependencyError:
    return DependencyError(
        f"onnxruntime opened {path} on {found}, not on {wanted}, whose libraries it did not "
        f"find{f' ({missing})' if missing else ''}. Install those that this onnxruntime was "
        f"built for, pip install 'quantkit[gpu]', or load with device='cpu'."
    )


def _load_openvino(folder: Path, threads: int | None, cache: str | Path | None) -> Session:
    """A session of OpenVINO."""
    path = find_onnx(folder, "openvino")
    compiled, interface = open_portable(path, threads, cache)
    tokenizer = read_tokenizer(path)
    file = _checked(ModelFile.read(interface, tokenizer, path), path, "openvino")
    return _session(OpenvinoBackend(compiled, output_name(file.head)), tokenizer, file, path)


def _checked(file: ModelFile, path: Path, place: str) -> ModelFile:
    """`file`, if it was exported for what opens it: a key of `TARGETS`."""
    if file.target is not None and file.target not in TARGETS[place]:
        raise CheckpointError(
            f"{path} was exported for {file.target}, and would run badly on {place}. "
            f"Export it again: quantkit export {folder_of(path)} --target {TARGETS[place][0]}"
        )
    return file


def _session(backend: Backend, tokenizer: Tokenizer, file: ModelFile, path: Path) -> Session:
    return Session(
        backend,
        tokenizer,
        file.head,
        path,
        max_length=file.max_length,
        padding=file.padding,
    )
