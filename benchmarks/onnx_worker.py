"""The process that holds one ONNX file while it is timed, and a benchmark's handle on it.

Like `quantkit.worker`, but for any classifier's file, also one that other tools wrote: it
needs no tokenizer and feeds whichever of BERT's inputs the file has, by name. The process
imports what serving imports; torch and onnx stay out of it. Requests and answers are JSON,
one a line, on stdin and stdout:

    {"do": "open", "path": FILE, "threads": N | null}                -> {"seconds": S}
    {"do": "run", "batch": B, "length": L, "rows": V}                -> {"logits": [[...], ...]}
    {"do": "time", "batch": B, "length": L, "rows": V, "repeats": N} -> {"seconds": [...]}

Token ids are seeded and below V. `run` pads its texts to various lengths, `time` does not
pad. An error answers {"error": MESSAGE}. The process ends with its standard input.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import MeasurementError
from quantkit.runtime import import_onnxruntime, session_options
from quantkit.worker import WARM_UP, token_arrays

__all__ = ["Worker", "main", "open_worker"]


class OnnxFile:
    """An open session and the inputs it takes."""

    def __init__(self, path: str, threads: int | None) -> None:
        runtime = import_onnxruntime()
        self._session = runtime.InferenceSession(
            path, session_options(threads), providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]

    def logits(self, batch: int, length: int, rows: int) -> np.ndarray:
        """The first output [batch, classes] on texts of half to full length, padded."""
        arrays = token_arrays(batch, length, rows)
        ends = np.linspace(max(1, length // 2), length, batch).astype(int)
        arrays["attention_mask"] *= np.arange(length) < ends[:, None]
        outputs: list[np.ndarray] = self._session.run(None, self._feeds(arrays))
        return outputs[0]

    def seconds(self, batch: int, length: int, rows: int, repeats: int) -> list[float]:
        """The times of `repeats` calls on full texts, after a warm-up."""
        feeds = self._feeds(token_arrays(batch, length, rows))
        for _ in range(WARM_UP):
            self._session.run(None, feeds)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._session.run(None, feeds)
            times.append(time.perf_counter() - start)
        return times

    def _feeds(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: arrays[name] for name in self._inputs}


class Worker:
    """A benchmark's side of one candidate's process."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self._name = name
        self._process = process

    def ask(self, **request: object) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            MeasurementError: the request failed; the message holds what the process said.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise MeasurementError(f"The process of candidate {self._name!r} has no pipes.")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; readline below finds that out
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise MeasurementError(f"Measuring {self._name!r} failed: {answer['error']}")
        return answer


@contextmanager
def open_worker(name: str, path: Path, threads: int | None) -> Iterator[Worker]:
    """A process with the file `path` open; it idles between requests and ends with the block."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        worker = Worker(name, process)
        try:
            worker.ask(do="open", path=str(path), threads=threads)
            yield worker
        finally:
            if process.stdin is not None:
                with suppress(BrokenPipeError):  # a request that a dead process never read
                    process.stdin.close()
            process.terminate()


def main() -> None:
    """Serve requests until standard input ends."""
    file: OnnxFile | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            do = request.pop("do")
            if do == "open":
                start = time.perf_counter()
                file = OnnxFile(**request)
                answer = {"seconds": time.perf_counter() - start}
            elif file is None:
                answer = {"error": "no file is open"}
            elif do == "run":
                answer = {"logits": file.logits(**request).tolist()}
            else:
                answer = {"seconds": file.seconds(**request)}
        except Exception as problem:  # onnxruntime raises classes of its own, without a base
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
