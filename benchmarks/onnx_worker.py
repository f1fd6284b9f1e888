"""The process that holds one ONNX file while it is timed.

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
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.runtime import import_onnxruntime, session_options
from quantkit.worker import WARM_UP, token_arrays

__all__ = ["PROGRAM", "main"]

PROGRAM = (str(Path(__file__)),)  # for quantkit.measure.open_worker


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
