"""Writes one peer's model for `cpu_latency.py`, in the environment that has the tool.

    python benchmarks/latency_peers.py --candidate nncf-int8 --checkpoint FOLDER \
        --plain FILE --output FOLDER

The tools are used as their documentation says, per channel where there is a choice. Weights do
not matter for speed, so ranges are taken from a few seeded texts.
"""

import argparse
import importlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peers
import torch
import transformers

__all__ = ["MAKERS", "main"]

BLOCK = 128  # weights that share a scale: the faster of the two usual sizes, 32 and 128
TEXTS, TOKENS = 4, 64

# Of the work, the plain float file (made first, by torch's exporter) and the folder to write to.
Maker = Callable[[peers.Work, Path, Path], None]


def plain(work: peers.Work, source: Path, output: Path) -> None:
    """The file of torch's own exporter, with dynamic batch and length."""
    del source
    shutil.move(peers.export(work), output / "model.onnx")


def fused(work: peers.Work, source: Path, output: Path) -> None:
    """The same after onnxruntime's transformer optimizer."""
    tools = importlib.import_module("onnxruntime.transformers.optimizer")
    config = work.model.config
    heads = getattr(config, "num_attention_heads", 0)
    optimized = tools.optimize_model(
        str(source),
        model_type="bert",
        num_heads=heads,
        hidden_size=config.hidden_size,
        opt_level=1,
    )
    optimized.save_model_to_file(str(output / "model.onnx"))


def dynamic(work: peers.Work, source: Path, output: Path) -> None:
    """quantize_dynamic, per channel."""
    del work
    tools = importlib.import_module("onnxruntime.quantization")
    target = output / "model.onnx"
    tools.quantize_dynamic(source, target, per_channel=True, weight_type=tools.QuantType.QInt8)


def static(work: peers.Work, source: Path, output: Path) -> None:
    """quantize_static with its default placement of QuantizeLinear and DequantizeLinear."""
    tools = importlib.import_module("onnxruntime.quantization")
    reader = peers.Reader(work.feeds)
    tools.quantize_static(source, output / "model.onnx", reader, per_channel=True)


def nbits(work: peers.Work, source: Path, output: Path) -> None:
    """MatMulNBits with 4-bit weights and integer activations (accuracy level 4)."""
    del work
    tools = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    quantizer = tools.MatMulNBitsQuantizer(
        onnx.load(source), block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(output / "model.onnx"))


def nncf_int8(work: peers.Work, source: Path, output: Path) -> None:
    """NNCF's post-training INT8 with its settings for transformers."""
    nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    model = openvino.Core().read_model(source)
    data, kind = nncf.Dataset(work.feeds), nncf.ModelType.TRANSFORMER
    quantized = nncf.quantize(model, data, model_type=kind, subset_size=len(work.feeds))
    openvino.save_model(quantized, output / "model.xml", compress_to_fp16=False)


def nncf_int4(work: peers.Work, source: Path, output: Path) -> None:
    """NNCF's INT4 weights, symmetric in groups of 128, all layers."""
    nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    model = openvino.Core().read_model(source)
    del work
    mode = nncf.CompressWeightsMode.INT4_SYM
    quantized = nncf.compress_weights(model, mode=mode, group_size=BLOCK, all_layers=False)
    openvino.save_model(quantized, output / "model.xml", compress_to_fp16=False)


MAKERS: dict[str, Maker] = {
    "ort-fp32": plain,
    "ort-fused": fused,
    "quantize_dynamic": dynamic,
    "quantize_static": static,
    "MatMulNBits": nbits,
    "openvino-int8": nncf_int8,
    "openvino-int4": nncf_int4,
}


def _work(checkpoint: Path, folder: Path) -> peers.Work:
    auto: Any = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rng, rows = np.random.default_rng(0), model.config.vocab_size
    feeds = [_feed(model, rng.integers(5, rows, (1, TOKENS))) for _ in range(TEXTS)]
    return peers.Work(model, feeds, 1, folder)


def _feed(model: Any, ids: np.ndarray) -> peers.Feed:  # noqa: ANN401
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if getattr(model.config, "type_vocab_size", 0):
        feed["token_type_ids"] = np.zeros_like(ids)
    return feed


def main() -> None:
    """Make one candidate."""
    parser = argparse.ArgumentParser(description="One peer's model for cpu_latency.py.")
    parser.add_argument("--candidate", required=True, choices=MAKERS)
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--plain", required=True, type=Path, help="float file; of ort-fp32: unread")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = _work(options.checkpoint, Path(folder))
        MAKERS[options.candidate](work, options.plain, options.output)


if __name__ == "__main__":
    main()
