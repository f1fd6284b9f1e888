"""An exported folder that answers texts: tokenizers, numpy and onnxruntime, no torch.

session = quantkit.load("runs/smsa/int8")
session.predict(["makanannya enak sekali"])   # [Prediction(label='positive', score=0.98)]
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from quantkit.errors import CheckpointError, DependencyError
from quantkit.files import read_json

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "Prediction",
    "Session",
    "available_threads",
    "cpu_flags",
    "find_onnx",
    "import_onnxruntime",
    "load",
    "session_options",
]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Processor features whose 8-bit products accumulate in 32 bits: VNNI, AMX, and Arm's NEON.
EXACT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimd"})

# In the order of preference: what a folder with several files is opened for.
ONNX_FILES = ("onnx/model_quantized.onnx", "onnx/model.onnx")


@dataclass(frozen=True)
class Prediction:
    """The answer to one text: the best label, its probability, and all probabilities."""

    label: str
    score: float
    scores: Mapping[str, float]


class Session:
    """A tokenizer and an ONNX file that belong together; made by `load`."""

    def __init__(
        self,
        inference: "onnxruntime.InferenceSession",
        tokenizer: Tokenizer,
        labels: tuple[str, ...],
        path: Path,
        max_length: int,
    ) -> None:
        self._inference = inference
        self._tokenizer = tokenizer
        self._inputs = tuple(value.name for value in inference.get_inputs())
        self.labels = labels
        self.path = path
        self.max_length = max_length
        self.vocabulary = tokenizer.get_vocab_size()  # token ids are below it
        tokenizer.enable_truncation(max_length)

    def predict(self, texts: Sequence[str], batch_size: int = 8) -> list[Prediction]:
        """One prediction a text, in the order of `texts`."""
        answers = []
        for row in self.logits(texts, batch_size):
            exponents = np.exp(row - row.max())
            shares = exponents / exponents.sum()
            best = int(shares.argmax())
            scores = dict(zip(self.labels, shares.tolist(), strict=True))
            answers.append(Prediction(self.labels[best], float(shares[best]), scores))
        return answers

    def logits(self, texts: Sequence[str], batch_size: int = 8) -> np.ndarray:
        """float32 [texts, classes]; batches hold texts of similar length, so little padding."""
        result = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for indices, arrays in self._batches(texts, batch_size):
            result[indices] = self.run(arrays)
        return result

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits [batch, classes] of int64 arrays [batch, length], as the file takes them."""
        feeds = {name: arrays[name] for name in self._inputs}
        outputs: list[np.ndarray] = self._inference.run(["logits"], feeds)
        return outputs[0]

    def _batches(
        self, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        encodings = self._tokenizer.encode_batch(list(texts))
        order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids))
        padding = self._tokenizer.token_to_id("[PAD]") or 0
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            rows = [encodings[index] for index in indices]
            shape = (len(rows), max(len(row.ids) for row in rows))
            arrays = {
                "input_ids": np.full(shape, padding, dtype=np.int64),
                "attention_mask": np.zeros(shape, dtype=np.int64),
                "token_type_ids": np.zeros(shape, dtype=np.int64),
            }
            for row, encoding in enumerate(rows):
                count = len(encoding.ids)
                arrays["input_ids"][row, :count] = encoding.ids
                arrays["attention_mask"][row, :count] = 1
                arrays["token_type_ids"][row, :count] = encoding.type_ids
            yield indices, arrays


def load(folder: str | Path, *, device: str = "cpu", threads: int | None = None) -> Session:
    """Open an exported folder.

    Args:
        folder: holds `onnx/`, `tokenizer.json` and `config.json`; or one of its .onnx files.
        device: `cpu` or `cuda`; the file must have been exported for it.
        threads: of the CPU provider; default: what the machine's CPU quota gives.

    Raises:
        CheckpointError: no such file, or one exported for another device.
        DependencyError: onnxruntime is missing, installed twice, or lacks the device.
    """
    path = find_onnx(Path(folder))
    runtime = import_onnxruntime()
    if _PROVIDERS.get(device) not in runtime.get_available_providers():
        raise DependencyError(
            f"This onnxruntime has no {device!r} provider. Install the right one: "
            f"pip install 'quantkit[{'gpu' if device == 'cuda' else 'cpu'}]'"
        )
    try:
        inference = runtime.InferenceSession(
            str(path), session_options(threads), providers=[_PROVIDERS[device]]
        )
    except Exception as problem:  # onnxruntime raises classes of its own, without a base
        raise CheckpointError(f"{path} cannot be opened: {problem}. Export it again.") from None
    properties = inference.get_modelmeta().custom_metadata_map
    target = properties.get("quantkit.target", device)
    if target != device:
        raise CheckpointError(
            f"{path} was exported for {target}, and would run badly on {device}. "
            f"Export it again: quantkit export {path.parent.parent} --target {device}"
        )
    root = path.parent.parent
    labels = _labels(properties, root)
    limit = int(properties.get("quantkit.max_length", 512))
    return Session(inference, _tokenizer(root), labels, path, limit)


def find_onnx(path: Path) -> Path:
    """The ONNX file meant by `path`: itself, or the folder's quantized one, or its float one.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    for name in ONNX_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds no exported model ({' or '.join(ONNX_FILES)}). "
        f"Make one with: quantkit export {path}"
    )


def session_options(threads: int | None = None) -> "onnxruntime.SessionOptions":
    """Options that every session of an exported file should have."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.log_severity_level = 3
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


def _labels(properties: Mapping[str, str], root: Path) -> tuple[str, ...]:
    if "quantkit.labels" in properties:
        return tuple(properties["quantkit.labels"].split("\n"))
    names = read_json(root / "config.json").get("id2label", {})
    return tuple(names[key] for key in sorted(names, key=int))


def _tokenizer(root: Path) -> Tokenizer:
    path = root / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{root} holds no tokenizer.json. Export the model again.")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    return tokenizer
