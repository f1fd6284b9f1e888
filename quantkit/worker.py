"""The process that holds one candidate while it is measured.

It imports what serving imports and nothing else, so that its memory and its speed are
those of a server. Requests and answers are JSON, one a line, on stdin and stdout:

    {"do": "open", "path": FOLDER, "threads": N | null, "engine": E, "device": D, "cache": FOLDER}
                                                          -> {"seconds": S, "notes": [...]}
    {"do": "predict", "first": [...], "second": [...] | null, "batch_size": B, "file": PATH}
                                                          -> {"outputs": PATH}
    {"do": "time", "batch": B, "length": L, "repeats": N} -> {"seconds": [...]}
    {"do": "memory"}                -> {"imports": BYTES, "peak": BYTES, "device": BYTES | null}

An error answers {"error": MESSAGE}. The process ends with its standard input. Outputs go
through the file that the request names, because those of words are many; `read_outputs`
reads it.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.answers import Outputs
from quantkit.memory import resident_bytes
from quantkit.runtime import import_onnxruntime, load
from quantkit.session import Session, token_arrays
from quantkit.tokenization import Inputs

__all__ = ["main", "read_outputs", "resident_bytes", "token_arrays", "write_outputs"]

WARM_UP = 3
OPTIONS = ("engine", "device", "cache")  # of `quantkit.load`


def main() -> None:
    """Serve requests until standard input ends."""
    session: Session | None = None
    imports = 0
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                options = {name: request[name] for name in OPTIONS if name in request}
                _import(options.get("engine", "onnxruntime"))
                imports = resident_bytes()
                start = time.perf_counter()
                session = load(request["path"], threads=request["threads"], **options)
                seconds = time.perf_counter() - start
                answer: dict[str, Any] = {"seconds": seconds, "notes": list(session.notes)}
            elif request["do"] == "memory":
                peak, device = resident_bytes(peak=True), _device_bytes()
                answer = {"imports": imports, "peak": peak, "device": device}
            elif session is None:
                answer = {"error": "no candidate is open"}
            else:
                answer = _serve(session, request)
        except Exception as problem:  # whatever it is, the process that asked must hear it
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _import(engine: str) -> None:
    """What an engine is made of, so that its memory is not counted as the model's."""
    if engine in ("auto", "onnxruntime"):
        import_onnxruntime()
    if engine == "openvino":
        import_module("openvino")
    if engine in ("auto", "torch"):
        import_module("quantkit.engine")


def _device_bytes() -> int | None:
    """The most that torch has held on a GPU; None where it has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


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


if __name__ == "__main__":
    main()
