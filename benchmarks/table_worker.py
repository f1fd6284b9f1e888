"""The process that opens one file of `tables.py`: memory and times as JSON, and no torch."""

import json
import statistics
import sys
import time

import numpy as np

from quantkit.memory import resident_bytes
from quantkit.runtime import import_onnxruntime, session_options

SHAPES = ((1, 16), (1, 128), (8, 128))


def measured(path: str, rows: int, repeats: int) -> dict[str, float]:
    """Seconds of processor time to open, median microseconds per shape, and memory."""
    runtime, before = import_onnxruntime(), resident_bytes()
    started = time.process_time()
    session = runtime.InferenceSession(path, session_options(1), providers=["CPUExecutionProvider"])
    found = {"open_s": time.process_time() - started, "opened_bytes": resident_bytes() - before}
    generator = np.random.default_rng(0)
    for batch, length in SHAPES:
        ids = generator.integers(0, rows, (batch, length))
        times = []
        for _ in range(repeats):
            started = time.process_time()
            session.run(None, {"ids": ids})
            times.append(time.process_time() - started)
        found[f"{batch}x{length}_us"] = 1e6 * statistics.median(times)
    return found | {"peak_bytes": resident_bytes(peak=True) - before}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
