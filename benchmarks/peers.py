"""Logits of other tools' quantizations of one fine-tuned checkpoint, to be scored elsewhere.

    pip install -r benchmarks/requirements-peers.txt
    python benchmarks/peers.py --method nncf-int8 --checkpoint runs/smsa/float \
        --calibration train.npz --inputs validation.npz test.npz \
        --output validation-nncf.npz test-nncf.npz

One process is one tool: it quantizes once and answers every file of `--inputs`. Nothing of
quantkit is imported, so the tools may live in an environment of their own. Each has its own
defaults, or what its documentation recommends for BERT; comments say why where that is a choice.

Files of rows are npz with `input_ids` (int64, all texts one after another, special tokens
included, no padding), `offsets` (int64, texts + 1) and optionally `token_type_ids`. The
answers are npz with

    logits   float32 [texts, labels], of a token classifier [tokens, labels]
    offsets  int64 [texts + 1]: text i has the rows offsets[i] to offsets[i + 1] of `logits`
    bytes    of the model as it would be deployed
    seconds  that quantization took, without loading and exporting

Texts are calibrated on and answered one by one. So no answer depends on padding or on other
texts, and a tool that takes one scale for a whole batch is not worse off for it.
"""

import argparse
import importlib
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray

__all__ = [
    "METHODS",
    "Feed",
    "Reader",
    "Row",
    "Work",
    "export",
    "main",
    "read_rows",
    "write_rows",
]

CLASSES = ("BertForSequenceClassification", "BertForTokenClassification")
BLOCK = 32  # weights that share one scale in the 4-bit methods

Integers = NDArray[np.int64]
Feed = dict[str, Integers]
Answer = Callable[[Feed], NDArray[np.float32]]  # the logits of a batch


@dataclass(frozen=True)
class Row:
    """The tokens of one text; without `types` all of them are of type 0."""

    ids: Integers
    types: Integers | None = None

    def feed(self) -> Feed:
        """What models read: a batch of this text alone."""
        ids = self.ids[None]
        types = np.zeros_like(ids) if self.types is None else self.types[None]
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}


@dataclass(frozen=True)
class Work:
    """What a method is given: the float model, texts to calibrate on, a folder for its files."""

    model: Any
    feeds: list[Feed]
    threads: int
    folder: Path


@dataclass(frozen=True)
class Peer:
    """A quantized model."""

    answer: Answer
    size: int  # bytes
    seconds: float


def read_rows(path: Path) -> list[Row]:
    """The texts of a file of rows."""
    with np.load(path) as file:
        ids, offsets = file["input_ids"].astype(np.int64), file["offsets"]
        types = file["token_type_ids"].astype(np.int64) if "token_type_ids" in file else None
    spanned = len(offsets) > 1 and offsets[0] == 0 and (np.diff(offsets) > 0).all()
    if not spanned or not offsets[-1] == len(ids) == len(ids if types is None else types):
        raise ValueError(f"{path}: offsets and token types do not fit the {len(ids)} tokens")
    spans = [slice(*span) for span in pairwise(offsets.tolist())]
    return [Row(ids[span], None if types is None else types[span]) for span in spans]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a file of rows; token types only where every row has them."""
    arrays: dict[str, Any] = {
        "input_ids": np.concatenate([row.ids for row in rows]).astype(np.int64),
        "offsets": _offsets(len(row.ids) for row in rows),
    }
    types = [row.types for row in rows if row.types is not None]
    if len(types) == len(rows):
        arrays["token_type_ids"] = np.concatenate(types).astype(np.int64)
    np.savez(path, **arrays)


def write_answers(path: Path, rows: Sequence[Row], peer: Peer) -> None:
    """Answer every text, one by one, and write the logits."""
    logits = []
    for row in rows:
        answer = np.asarray(peer.answer(row.feed()), np.float32)
        logits.append(answer[0] if answer.ndim == 3 else answer)
    flat = np.concatenate(logits)
    if not np.isfinite(flat).all():
        raise ValueError(f"{(~np.isfinite(flat)).sum()} of {flat.size} logits are not finite")
    offsets = _offsets(map(len, logits))
    np.savez(path, logits=flat, offsets=offsets, bytes=peer.size, seconds=peer.seconds)


def _offsets(lengths: Iterable[int]) -> Integers:
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int64)


def load_model(folder: Path) -> Any:  # noqa: ANN401
    """The checkpoint as transformers loads it, in float32."""
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    if name not in CLASSES:
        raise ValueError(f"{folder} holds a {name}; known are {' and '.join(CLASSES)}")
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def export(work: Work) -> Path:
    """The float ONNX file, by torch's own exporter with dynamic batch and length."""
    path = work.folder / "float.onnx"
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in work.feeds[0]}
    if "token_type_ids" in example:
        example["token_type_ids"].zero_()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    shapes = dict.fromkeys(example, axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about its own parts, nothing to act on
        program: Any = torch.onnx.export(
            work.model, kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    # quantize_dynamic refuses the file as it is: "Inferred shape and existing shape differ",
    # as the shapes stored of a Gemm's weights do not fit the MatMul that it makes of the Gemm.
    # The tools infer the shapes of inner values themselves; calibration gives the same file.
    proto = program.model_proto
    del proto.graph.value_info[:]
    onnx.save_model(proto, path)
    return path


class Reader(list[Feed]):
    """Calibration texts as onnxruntime reads them; `set_range` serves CalibStridedMinMax."""

    def __init__(self, feeds: list[Feed]) -> None:
        super().__init__(feeds)
        self.set_range(0, len(feeds))

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give the texts from `start_index` to before `end_index`."""
        self._left = iter(self[start_index:end_index])

    def get_next(self) -> Feed | None:
        """The next text."""
        return next(self._left, None)


def _session(work: Work, path: Path, seconds: float) -> Peer:
    """A file that onnxruntime answers with."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Peer(lambda feed: session.run(None, feed)[0], path.stat().st_size, seconds)


def ort_float(work: Work) -> Peer:
    """The exported file as it is: what the other methods start from."""
    return _session(work, export(work), 0.0)


def ort_dynamic(work: Work) -> Peer:
    """INT8 weights, activations by the range of each batch."""
    tools, source = importlib.import_module("onnxruntime.quantization"), export(work)
    path, began = work.folder / "dynamic.onnx", perf_counter()
    tools.quantize_dynamic(source, path, per_channel=True, weight_type=tools.QuantType.QInt8)
    return _session(work, path, perf_counter() - began)


def ort_static(calibration: str, work: Work) -> Peer:
    """INT8 weights and activations by calibrated ranges, at every place that is the default."""
    tools, source = importlib.import_module("onnxruntime.quantization"), export(work)
    # The histogram methods stack what they saw of all texts and stop at texts of different
    # lengths: "inhomogeneous shape". Padding goes against the peer: it quantizes attention
    # scores plus mask, -3e38 for padding, and no range holds both. A stride of 1 gives it one
    # text after another, and it merges their histograms. MinMax takes any lengths as it is.
    extra = {} if calibration == "MinMax" else {"CalibStridedMinMax": 1}
    reader, method = Reader(work.feeds), tools.CalibrationMethod[calibration]
    path, began = work.folder / "static.onnx", perf_counter()
    tools.quantize_static(
        source, path, reader, per_channel=True, calibrate_method=method, extra_options=extra
    )
    return _session(work, path, perf_counter() - began)


def ort_4bit(algorithm: str, work: Work) -> Peer:
    """4-bit weights in blocks of MatMulNBits, asymmetric as the class defaults to."""
    tools = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    configs: dict[str, Callable[[], Any]] = {
        "nearest": lambda: None,  # MatMulNBitsQuantizer's own
        "hqq": lambda: tools.HQQWeightOnlyQuantConfig(block_size=BLOCK),
        "kquant": tools.KQuantWeightOnlyQuantConfig,
        # Its block_size is not the weights' but of columns done at once. As of 1.31.1 it
        # rounds to nearest too: it propagates errors by the empty half of its triangular factor.
        "gptq": lambda: tools.GPTQWeightOnlyQuantConfig(Reader(work.feeds)),
    }
    config, proto = configs[algorithm](), onnx.load(export(work))
    path, began = work.folder / "4bit.onnx", perf_counter()
    quantizer = tools.MatMulNBitsQuantizer(proto, block_size=BLOCK, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
    return _session(work, path, perf_counter() - began)


def nncf_int8(work: Work) -> Peer:
    """NNCF's post-training INT8 with its settings for transformers, run by OpenVINO."""
    nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    core, path = openvino.Core(), work.folder / "nncf.xml"
    model = core.read_model(export(work))
    began = perf_counter()
    quantized = nncf.quantize(
        model,
        nncf.Dataset(work.feeds),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(work.feeds),  # by default the first 300
    )
    seconds = perf_counter() - began
    # What stays float stays float32, as in the other peers' files; and it is computed so:
    # by itself OpenVINO takes bfloat16 on CPUs that have it.
    openvino.save_model(quantized, path, compress_to_fp16=False)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": work.threads}
    compiled = core.compile_model(path, "CPU", options)
    size = sum(each.stat().st_size for each in (path, path.with_suffix(".bin")))
    return Peer(lambda feed: compiled(feed)[0], size, seconds)


def torchao(config: str, work: Work) -> Peer:
    """INT8 by one of torchao's configurations, in every Linear layer."""
    tools = importlib.import_module("torchao.quantization")
    began = perf_counter()
    tools.quantize_(work.model, getattr(tools, config)())
    return _module(work, perf_counter() - began)


def torchao_int4(work: Work) -> Peer:
    """INT4 weights as torchao packs them for CPUs."""
    quantize = importlib.import_module("torchao.quantization").quantize_
    # Int4WeightOnlyConfig packs for accelerators only. This one is for torch's CPU kernel,
    # which takes columns by 16: a classifier of a few labels stays float.
    tools = importlib.import_module("torchao.prototype.quantization.int4")
    config, began = tools.PrototypeInt4WeightOnlyConfig(group_size=BLOCK), perf_counter()
    layers = [each for each in work.model.modules() if getattr(each, "out_features", 1) % 16 == 0]
    quantize(work.model, config, lambda layer, _: layer in layers)
    peer = _module(work, perf_counter() - began)
    # In float32 that kernel is some 50 times slower than a float layer. The weights it works
    # with are its answer to the identity, and float layers of them give the same logits.
    for layer in layers:
        with torch.no_grad():
            weight = torch.nn.functional.linear(torch.eye(layer.in_features), layer.weight)
        layer.weight = torch.nn.Parameter(weight.T.contiguous(), requires_grad=False)
    return peer


def _module(work: Work, seconds: float) -> Peer:
    """The torch model itself; its size is that of its saved weights."""
    path = work.folder / "torchao.pt"
    torch.save(work.model.state_dict(), path)

    def answer(feed: Feed) -> NDArray[np.float32]:
        tensors = {name: torch.from_numpy(values) for name, values in feed.items()}
        with torch.inference_mode():
            logits: NDArray[np.float32] = work.model(**tensors).logits.numpy()
        return logits

    return Peer(answer, path.stat().st_size, seconds)


METHODS: dict[str, Callable[[Work], Peer]] = {
    "ort-float": ort_float,
    "ort-dynamic": ort_dynamic,
    "ort-static-minmax": partial(ort_static, "MinMax"),
    "ort-static-entropy": partial(ort_static, "Entropy"),
    "ort-static-percentile": partial(ort_static, "Percentile"),
    "ort-4bit-nearest": partial(ort_4bit, "nearest"),
    "ort-4bit-hqq": partial(ort_4bit, "hqq"),
    "ort-4bit-kquant": partial(ort_4bit, "kquant"),
    "ort-4bit-gptq": partial(ort_4bit, "gptq"),
    "nncf-int8": nncf_int8,
    "torchao-int8-dynamic": partial(torchao, "Int8DynamicActivationInt8WeightConfig"),
    "torchao-int8-weight-only": partial(torchao, "Int8WeightOnlyConfig"),
    "torchao-int4-weight-only": torchao_int4,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantize, answer and write; 1 and the reason where the tool gives up."""
    parser = argparse.ArgumentParser(description="Logits of other tools' quantizations.")
    add = parser.add_argument
    add("--method", required=True, choices=METHODS)
    add("--checkpoint", required=True, type=Path, help="folder of a fine-tuned BERT classifier")
    add("--calibration", required=True, type=Path, help="rows to calibrate on")
    add("--inputs", required=True, type=Path, nargs="+", help="rows to answer")
    add("--output", required=True, type=Path, nargs="+", help="answers, one for each of --inputs")
    add("--threads", type=int, default=1, help="that answer (%(default)s)")
    options = parser.parse_args(arguments)
    if len(options.inputs) != len(options.output):
        parser.error(f"{len(options.inputs)} --inputs need as many --output")
    try:
        run(options)
    except Exception as error:
        # The tools raise anything; the caller wants one line at the end of what they wrote.
        traceback.print_exc()
        print(f"{options.method}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Quantize once, then answer every file."""
    torch.set_num_threads(options.threads)
    rows = [read_rows(path) for path in options.inputs]
    feeds = [row.feed() for row in read_rows(options.calibration)]
    with tempfile.TemporaryDirectory() as folder:
        work = Work(load_model(options.checkpoint), feeds, options.threads, Path(folder))
        peer = METHODS[options.method](work)
        for path, texts in zip(options.output, rows, strict=True):
            write_answers(path, texts, peer)


if __name__ == "__main__":
    sys.exit(main())
