"""The process that holds one candidate while it is measured.

It imports what serving imports and nothing else, so that its memory and its speed are
those of a server. Requests and answers are JSON, one a line, on stdin and stdout:

    {"do": "open", "path": FOLDER, "threads": N | null}   -> {"seconds": S}
    {"do": "predict", "first": [...], "second": [...] | null, "batch_size": B, "file": PATH}
                                                          -> {"outputs": PATH}
    {"do": "time", "batch": B, "length": L, "repeats": N} -> {"seconds": [...]}
    {"do": "memory"}                                      -> {"imports": BYTES, "peak": BYTES}

An error answers {"error": MESSAGE}. The process ends with its standard input. Outputs go
through the file that the request names, because those of words are many; `read_outputs`
reads it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.answers import Outputs
from quantkit.memory import resident_bytes
from quantkit.runtime import Session, import_onnxruntime, load
from quantkit.tokenization import Inputs

__all__ = ["main", "read_outputs", "resident_bytes", "token_arrays", "write_outputs"]

WARM_UP = 3


def main() -> None:
    """Serve requests until standard input ends."""
    import_onnxruntime()
    imports = resident_bytes()
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                start = time.perf_counter()
                session = load(request["path"], threads=request["threads"])
                answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
            elif request["do"] == "memory":
                answer = {"imports": imports, "peak": resident_bytes(peak=True)}
            elif session is None:
                answer = {"error": "no candidate is open"}
            else:
                answer = _serve(session, request)
        except Exception as problem:  # whatever it is, the process that asked must hear it
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _serve(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "predict":
        inputs = Inputs(request["first"], request["second"])
        write_outputs(Path(request["file"]), session.outputs(inputs, request["batch_size"]))
        return {"outputs": request["file"]}
    arrays = token_arrays(request["batch"], request["length"], session.vocabulary)
    for _ in range(WARM_UP):
        session.run(arrays)
    seconds = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        session.run(arrays)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds}


def write_outputs(path: Path, outputs: Outputs) -> None:
    """Write what a session said into an .npz file; lists of arrays keep their lengths."""
    if isinstance(outputs, list):
        counts = np.array([len(row) for row in outputs], dtype=np.int64)
        values = np.concatenate(outputs) if outputs else np.empty((0, 0), dtype=np.float32)
        np.savez(path, values=values, counts=counts)
    else:
        np.savez(path, values=outputs)


def read_outputs(path: Path) -> Outputs:
    """The inverse of `write_outputs`."""
    with np.load(path) as file:
        values: np.ndarray = file["values"]
        if "counts" not in file:
            return values
        return np.split(values, np.cumsum(file["counts"])[:-1]) if len(file["counts"]) else []


def token_arrays(batch: int, length: int, rows: int) -> dict[str, np.ndarray]:
    """Full int64 arrays [batch, length] of seeded token ids below `rows`."""
    ids = np.random.default_rng(0).integers(5, rows, (batch, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


if __name__ == "__main__":
    main()
