"""The process that holds one candidate while it is measured.

It imports what serving imports and nothing else, so that its memory and its speed are
those of a server. Requests and answers are JSON, one a line, on stdin and stdout:

    {"do": "open", "path": FOLDER, "threads": N | null}   -> {"seconds": S}
    {"do": "predict", "texts": [...], "batch_size": B}    -> {"logits": [[...], ...]}
    {"do": "time", "batch": B, "length": L, "repeats": N} -> {"seconds": [...]}
    {"do": "memory"}                                      -> {"imports": BYTES, "peak": BYTES}

An error answers {"error": MESSAGE}. The process ends with its standard input.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.runtime import Session, import_onnxruntime, load

__all__ = ["main", "resident_bytes", "token_arrays"]

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
        return {"logits": session.logits(request["texts"], request["batch_size"]).tolist()}
    arrays = token_arrays(request["batch"], request["length"], session.vocabulary)
    for _ in range(WARM_UP):
        session.run(arrays)
    seconds = []
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        session.run(arrays)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds}


def token_arrays(batch: int, length: int, rows: int) -> dict[str, np.ndarray]:
    """Full int64 arrays [batch, length] of seeded token ids below `rows`."""
    ids = np.random.default_rng(0).integers(5, rows, (batch, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def resident_bytes(*, peak: bool = False) -> int:
    """Bytes of memory that this process holds now, or its `peak` so far.

    Linux's `getrusage` would count the parent's memory too, from before the program was
    started; /proc counts this program's own. Elsewhere only the peak is known.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        wanted = "VmHWM:" if peak else "VmRSS:"
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


if __name__ == "__main__":
    main()
