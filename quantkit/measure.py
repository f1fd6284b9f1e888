"""Latency, memory and answers of exported files, each in a process of its own.

Several ONNX Runtime sessions in one process disturb one another (their idle threads spin),
so every candidate gets a worker process; the timed rounds alternate between the workers,
so that a drift of the machine's speed meets all of them alike.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.answers import Outputs
from quantkit.errors import MeasurementError
from quantkit.providers import available_threads, cpu_flags
from quantkit.tokenization import Inputs
from quantkit.worker import read_outputs

__all__ = ["Latency", "Measured", "Worker", "environment", "measure", "open_worker"]

_PACKAGES = (
    "quantkit",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "onnx",
)

# CPU features that decide which integer kernels run.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")


@dataclass(frozen=True)
class Latency:
    """Time of one call on a full batch, in milliseconds, and how many calls were timed."""

    batch: int
    length: int
    p50_ms: float
    p90_ms: float
    calls: int


@dataclass(frozen=True)
class Measured:
    """One candidate: its answers, times and memory."""

    outputs: Outputs  # float32 [rows, outputs]; of words one [words, labels] per row
    latency: tuple[Latency, ...]
    open_seconds: float
    peak_bytes: int  # peak of the process minus what it held after its imports
    imports_bytes: int
    device_peak_bytes: int | None = None  # of the GPU's memory, as torch counts it
    notes: tuple[str, ...] = ()  # how the candidate was opened


def measure(
    candidates: Mapping[str, Path],
    inputs: Inputs,
    *,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    repeats: int,
    threads: int | None = None,
    engine: str = "onnxruntime",
    device: str = "cpu",
    cache: Path | None = None,
) -> dict[str, Measured]:
    """Measure every exported folder or file.

    Args:
        candidates: name -> folder or .onnx file.
        inputs: answered by each candidate, in batches of 8.
        shapes: (batch, length in tokens) pairs to time.
        rounds: how often the candidates take turns.
        repeats: timed calls per shape and round, after a warm-up.
        threads: of each candidate; default: what the CPU quota gives.
        engine: what opens the folders, see `quantkit.load`.
        device: `cpu` or `cuda`.
        cache: of optimized graphs, see `quantkit.load`.

    Raises:
        MeasurementError: a worker failed; the message holds what it said.
    """
    options = {"engine": engine, "device": device}
    if cache is not None:
        options["cache"] = str(cache)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(open_worker(name, path, threads, options=options))
            for name, path in candidates.items()
        }
        opened = {name: worker.seconds for name, worker in workers.items()}
        outputs = {name: _outputs(worker, inputs) for name, worker in workers.items()}
        times: dict[tuple[str, int, int], list[float]] = {}
        for _ in range(rounds):
            for batch, length in shapes:
                for name, worker in workers.items():
                    answer = worker.ask(do="time", batch=batch, length=length, repeats=repeats)
                    times.setdefault((name, batch, length), []).extend(answer["seconds"])
        memory = {name: worker.ask(do="memory") for name, worker in workers.items()}
    return {
        name: Measured(
            outputs[name],
            tuple(_latency(times[name, *shape], *shape) for shape in shapes if rounds),
            opened[name],
            memory[name]["peak"] - memory[name]["imports"],
            memory[name]["imports"],
            memory[name]["device"],
            workers[name].notes,
        )
        for name in candidates
    }


def environment(threads: int | None = None) -> dict[str, Any]:
    """What a figure depends on: processor, its integer features, threads and versions."""
    flags = cpu_flags()
    return {
        "cpu": _processor(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads or available_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _outputs(worker: "Worker", inputs: Inputs) -> Outputs:
    """What a candidate says of all rows, handed over in a file."""
    second = None if inputs.second is None else _plain(inputs.second)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "outputs.npz")
        first = _plain(inputs.first)
        worker.ask(do="predict", first=first, second=second, batch_size=8, file=file)
        return read_outputs(Path(file))


def _plain(rows: Sequence[str] | Sequence[Sequence[str]]) -> list[str | list[str]]:
    return [row if isinstance(row, str) else list(row) for row in rows]


def _latency(seconds: Sequence[float], batch: int, length: int) -> Latency:
    p50, p90 = np.quantile(np.asarray(seconds) * 1e3, (0.5, 0.9))
    return Latency(batch, length, float(p50), float(p90), len(seconds))


@dataclass
class Worker:
    """The asking side of one candidate's process."""

    name: str
    process: "subprocess.Popen[str]"
    seconds: float = 0.0  # to open the file
    notes: tuple[str, ...] = ()  # on how it was opened

    def ask(self, **request: object) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            MeasurementError: the request failed; the message holds what the process said.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise MeasurementError(f"The process of candidate {self.name!r} has no pipes.")
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said is read below
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise MeasurementError(f"Measuring {self.name!r} failed: {answer['error']}")
        return answer


@contextmanager
def open_worker(
    name: str,
    path: Path,
    threads: int | None,
    program: Sequence[str] = ("-m", "quantkit.worker"),
    options: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[Worker]:
    """A process with `path` open, which idles between requests and ends with the block.

    `program` is what `python` runs there; it speaks the protocol of `quantkit.worker`. `options`
    go into its request to open.
    """
    with subprocess.Popen(
        [python, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        worker = Worker(name, process)
        try:
            opened = worker.ask(do="open", path=str(path), threads=threads, **(options or {}))
            worker.seconds, worker.notes = opened["seconds"], tuple(opened.get("notes", ()))
            yield worker
        finally:
            process.kill()
            if process.stdin is not None:
                with suppress(BrokenPipeError):  # an unsent request to a process that ended
                    process.stdin.close()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
