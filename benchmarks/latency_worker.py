"""The process that holds one candidate of `cpu_latency.py` while it is timed.

It imports what serving the candidate imports, and nothing else: an ONNX file needs onnxruntime, an
OpenVINO model openvino, a torch module torch. It feeds whichever of BERT's inputs the model takes,
by name. Requests and answers are JSON, one a line, on stdin and stdout:

    {"do": "open", "path": FILE, "threads": N}       -> {"seconds": S}
    {"do": "run", "batch": B, "length": L, "rows": V}  -> {"logits": [[...], ...]}
    {"do": "time", "batch": B, "length": L, "rows": V, "repeats": N} -> {"seconds": [...],
                                                                         "cpu_seconds": [...]}
    {"do": "texts", "file": NPZ, "batch": B}          -> {"seconds": S}
    {"do": "about"}                -> {"imports": BYTES, "peak": BYTES, "precision": NAME}

The engine is the first argument: see `ENGINES`. Token ids are seeded and below V. `run` pads its
texts to various lengths, `time` does not pad, `texts` answers all rows of a file once, the shortest
first, so that batches need little padding. An error answers {"error": MESSAGE}. The process ends
with its standard input.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # another environment may lack quantkit

from quantkit.memory import resident_bytes

__all__ = ["ENGINES", "main", "program"]

WARM_UP = 2

Feeds = dict[str, np.ndarray]
# Answers feeds with logits [batch, classes]; the inputs that it takes; the precision that it says.
Engine = tuple[Callable[[Feeds], np.ndarray], list[str], str]


def onnx_file(path: str, threads: int, entry: tuple[str, str] | None = None) -> Engine:
    """An ONNX file, with the options of every session of quantkit's and one more setting."""
    from quantkit.providers import import_onnxruntime, session_options

    options = session_options(threads)
    if entry == ("arena", "0"):
        options.enable_cpu_mem_arena = False
    elif entry is not None:
        options.add_session_config_entry(*entry)
    session = import_onnxruntime().InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return (lambda feeds: session.run(None, feeds)[0]), names, "as in the file"


def openvino_f32(path: str, threads: int) -> Engine:
    """An OpenVINO model that computes in float32 what it does not in integers."""
    return _openvino(path, threads, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_default(path: str, threads: int) -> Engine:
    """An OpenVINO model as it comes: bfloat16 on CPUs that have it."""
    return _openvino(path, threads, {})


def _openvino(path: str, threads: int, options: Mapping[str, object]) -> Engine:
    core: Any = import_module("openvino").Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **options}
    compiled = core.compile_model(path, "CPU", hints)
    names = [value.get_any_name() for value in compiled.inputs]
    precision = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    request = compiled.create_infer_request()
    return (lambda feeds: request.infer(feeds)[0]), names, precision


def torch_dynamic(path: str, threads: int) -> Engine:
    """A checkpoint with torch's own dynamic INT8 Linears."""
    import torch

    def quantized(model: Any) -> Any:  # noqa: ANN401
        tool: Any = torch.ao.quantization.quantize_dynamic
        return tool(model, {torch.nn.Linear}, torch.qint8)

    return _torch(path, threads, quantized, "int8 Linears, float32")


def torch_bf16(path: str, threads: int) -> Engine:
    """A checkpoint in bfloat16."""
    import torch

    return _torch(path, threads, lambda model: model.to(torch.bfloat16), "bfloat16")


def _torch(path: str, threads: int, change: Callable[[Any], Any], precision: str) -> Engine:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = change(AutoModelForSequenceClassification.from_pretrained(path).train(False))
    types = getattr(model.config, "type_vocab_size", 0)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]

    def answer(feeds: Feeds) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(values) for name, values in feeds.items()}
            logits: np.ndarray = model(**tensors).logits.float().numpy()
        return logits

    return answer, names, precision


ENGINES: dict[str, tuple[tuple[str, ...], Callable[[str, int], Engine]]] = {
    "onnx": (("onnxruntime",), onnx_file),
    "onnx-no-arena": (("onnxruntime",), partial(onnx_file, entry=("arena", "0"))),
    "onnx-no-spinning": (
        ("onnxruntime",),
        partial(onnx_file, entry=("session.intra_op.allow_spinning", "0")),
    ),
    "onnx-no-prepacking": (
        ("onnxruntime",),
        partial(onnx_file, entry=("session.disable_prepacking", "1")),
    ),
    "onnx-small-blocks": (
        ("onnxruntime",),
        partial(onnx_file, entry=("session.dynamic_block_base", "4")),
    ),
    "openvino-f32": (("openvino",), openvino_f32),
    "openvino-default": (("openvino",), openvino_default),
    "torch-dynamic": (("torch", "transformers"), torch_dynamic),
    "torch-bf16": (("torch", "transformers"), torch_bf16),
}


def program(engine: str) -> tuple[str, ...]:
    """What Python runs for `quantkit.measure.open_worker`."""
    return str(Path(__file__)), engine


class Candidate:
    """An open model."""

    def __init__(self, engine: Engine) -> None:
        self._answer, self._inputs, self.precision = engine

    def logits(self, batch: int, length: int, rows: int) -> np.ndarray:
        """[batch, classes] on texts of half to full length, padded."""
        arrays = token_arrays(batch, length, rows)
        ends = np.linspace(max(1, length // 2), length, batch).astype(int)
        arrays["attention_mask"] *= np.arange(length) < ends[:, None]
        return self._answer(self._feeds(arrays))

    def times(self, batch: int, length: int, rows: int, repeats: int) -> dict[str, list[float]]:
        """By the wall's clock and by the process's, of calls on full texts after a warm-up."""
        feeds = self._feeds(token_arrays(batch, length, rows))
        for _ in range(WARM_UP):
            self._answer(feeds)
        wall, used = [], []
        for _ in range(repeats):
            start, before = time.perf_counter(), time.process_time()
            self._answer(feeds)
            used.append(time.process_time() - before)
            wall.append(time.perf_counter() - start)
        return {"seconds": wall, "cpu_seconds": used}

    def texts(self, file: str, batch: int) -> float:
        """Seconds that all texts of `file` take in batches."""
        with np.load(file) as rows:
            ids, offsets = rows["input_ids"], rows["offsets"].tolist()
        texts = sorted((ids[start:end] for start, end in pairwise(offsets)), key=len)
        batches = [
            self._feeds(_padded(texts[at : at + batch])) for at in range(0, len(texts), batch)
        ]
        self._answer(batches[0])
        start = time.perf_counter()
        for feeds in batches:
            self._answer(feeds)
        return time.perf_counter() - start

    def _feeds(self, arrays: Feeds) -> Feeds:
        return {name: arrays[name] for name in self._inputs}


def token_arrays(batch: int, length: int, rows: int) -> Feeds:
    """Full int64 arrays [batch, length] of seeded token ids below `rows`."""
    return _padded(list(np.random.default_rng(0).integers(5, rows, (batch, length))))


def _padded(texts: list[np.ndarray]) -> Feeds:
    shape = len(texts), max(map(len, texts))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def main() -> None:
    """Serve requests until standard input ends."""
    modules, opened = ENGINES[sys.argv[1]]
    for name in modules:
        __import__(name)
    imports = resident_bytes()
    model: Candidate | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            do = request.pop("do")
            if do == "open":
                start = time.perf_counter()
                model = Candidate(opened(request["path"], request["threads"]))
                answer = {"seconds": time.perf_counter() - start}
            elif model is None:
                answer = {"error": "no file is open"}
            elif do == "run":
                answer = {"logits": model.logits(**request).tolist()}
            elif do == "texts":
                answer = {"seconds": model.texts(**request)}
            elif do == "about":
                peak = resident_bytes(peak=True)
                answer = {"imports": imports, "peak": peak, "precision": model.precision}
            else:
                answer = dict(model.times(**request))
        except Exception as problem:  # the engines raise classes of their own, without a base
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
