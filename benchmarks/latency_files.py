"""The models that `cpu_latency.py` times: one checkpoint, quantkit's files of it, the peers' files.

Weights are seeded and random: speed depends on the shapes and on the graph, not on what the
weights say. The graphs are those of the recipes whose accuracy is reported, smoothing included;
rounding to nearest stands for GPTQ, which changes codes and nothing else. Every
candidate has a folder of its own that appears when it is complete, so making them can be
interrupted.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import bert_sizes
import numpy as np
import onnx
import torch
from latency_peers import MAKERS
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from quantkit import exporter
from quantkit.errors import MeasurementError
from quantkit.exporter.bert import build
from quantkit.files import new_folder, read_json, write_json
from quantkit.measure import environment
from quantkit.onnx_file import Target
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, load_recipe, recipe_hash, with_bits, with_changes

__all__ = ["NUMBERS", "RECIPE", "Environments", "Sizes", "count_multipliers", "make", "recipes"]

RECIPE = Path(__file__).parent.parent / "recipes" / "indonlu" / "smsa.yaml"
CALIBRATION_BATCHES, CALIBRATION_SHAPE = 2, (8, 64)
MADE = "made.json"
OWN = ("float", "int8", "int8-portable", "4bit")


@dataclass(frozen=True)
class Sizes(bert_sizes.Sizes):
    """A model of a family; its word table has `rows`, as IndoBERT's, and texts reach `vocab`."""

    family: Literal["bert", "distilbert"] = "bert"
    rows: int = bert_sizes.DECLARED_ROWS

    def changed(self, options: argparse.Namespace) -> "Sizes":
        """With the numbers that a command line gives; what it leaves out stays."""
        given = {name: getattr(options, name) for name in NUMBERS}
        return replace(self, **{name: size for name, size in given.items() if size})


# What a command line can change.
NUMBERS = tuple(name for name, value in asdict(Sizes()).items() if isinstance(value, int))


@dataclass(frozen=True)
class Environments:
    """Programs of the environments that peers live in; without one its candidates are left out."""

    peers: Path | None = None  # python
    optimum: Path | None = None  # optimum-cli


def recipes() -> Mapping[int, Recipe]:
    """By bits."""
    changes = {"rounding": {"name": "nearest"}}
    return {bits: with_changes(with_bits(load_recipe(RECIPE), bits), changes) for bits in (8, 4)}


def make(name: str, sizes: Sizes, folder: Path, programs: Environments) -> Path:
    """The folder of a candidate's model, made if it is not there or of other versions."""
    target, made = folder / name, _manifest(name, sizes)
    if (target / MADE).is_file() and read_json(target / MADE) == made:
        return target
    if name != "checkpoint":
        make("checkpoint", sizes, folder, programs)
    if name in MAKERS and name != "ort-fp32":
        make("ort-fp32", sizes, folder, programs)
    with new_folder(target, overwrite=True) as partial_folder:
        _MAKERS[name](sizes, folder / "checkpoint", partial_folder, programs)
        write_json(partial_folder / MADE, made)
    return target


def _manifest(name: str, sizes: Sizes) -> dict[str, Any]:
    """What a file depends on; quantkit's own on the code that writes graphs, too."""
    made = {"model": asdict(sizes), "packages": environment()["packages"]}
    if name in OWN:
        made["recipes"] = {str(bits): recipe_hash(recipe) for bits, recipe in recipes().items()}
        code = sorted(Path(exporter.__file__).parent.glob("*.py"))
        made["exporter"] = sha256(b"".join(each.read_bytes() for each in code)).hexdigest()
    return made


def _checkpoint(sizes: Sizes, _: Path, output: Path, __: Environments) -> None:
    table = replace(sizes, vocab=sizes.rows)
    model = bert_sizes.random_model(table, distilled=sizes.family == "distilbert")
    model.save_pretrained(output)


def _model(checkpoint: Path) -> PreTrainedModel:
    auto: Any = AutoModelForSequenceClassification
    model: PreTrainedModel = auto.from_pretrained(checkpoint)
    model.train(False)
    return model


def _batch(model: PreTrainedModel, vocab: int, seed: int) -> dict[str, Tensor]:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(5, vocab, CALIBRATION_SHAPE))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "type_vocab_size", 0):
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch


def _float(_: Sizes, checkpoint: Path, output: Path, __: Environments) -> None:
    onnx.save_model(build(_model(checkpoint), {}), output / "model.onnx")


def _quantized(
    bits: int,
    target: Target,
    sizes: Sizes,
    checkpoint: Path,
    output: Path,
    _: Environments,
) -> None:
    """Quantkit's integers; a file without its smoothing would flatter quantkit."""
    result = _integers(bits, sizes.vocab, checkpoint)
    proto = build(result.model, {}, target)
    expected, found = _smoothed_inputs(result), count_multipliers(proto)
    if found != expected or (bits == 8 and not found):
        raise MeasurementError(
            f"The file holds {found} smoothing multipliers and the recipe gives {expected}: "
            f"without them the comparison would flatter quantkit."
        )
    onnx.save_model(proto, output / "model.onnx")


@lru_cache(maxsize=1)
def _integers(bits: int, vocab: int, checkpoint: Path) -> Quantized:
    """Kept for the next candidate, which often is another graph of the same integers."""
    model = _model(checkpoint)
    batches = [_batch(model, vocab, seed) for seed in range(CALIBRATION_BATCHES)]
    return quantize(model, batches, recipe=recipes()[bits], reachable_rows=vocab)


def _smoothed_inputs(result: Quantized) -> int:
    """Inputs whose smoothing vector could not move into the Linear before them."""
    return sum(choice.smoothing is not None and not choice.folded for choice in result.decisions)


def count_multipliers(proto: onnx.ModelProto) -> int:
    """The Mul nodes of a quantkit file that carry a smoothing vector."""
    return sum(
        node.op_type == "Mul" and any(name.endswith(".input.multiplier") for name in node.input)
        for node in proto.graph.node
    )


def _rate(sizes: Sizes, _: Path, output: Path, __: Environments) -> None:
    """One integer product of the model's widest kind, for the rate that its kernel reaches.

    Tokens are rows of a table of codes, so that it takes what the other candidates take.
    """
    rng, domain = np.random.default_rng(0), "com.microsoft"
    width, inner = sizes.hidden, sizes.intermediate
    tensors = {
        "table": rng.integers(0, 256, (sizes.vocab, width), dtype=np.uint8),
        "weight": rng.integers(-127, 128, (width, inner), dtype=np.int8),
        "scale": np.float32(1e-3),
        "weight_scale": np.full(inner, 1e-3, np.float32),
        "zero_point": np.uint8(128),
    }
    product = ["codes", "weight", "scale", "weight_scale", "zero_point"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["codes"]),
            helper.make_node("MatMulIntegerToFloat", product, ["logits"], domain=domain),
        ],
        "rate",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", inner])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    onnx.save_model(
        helper.make_model(graph, opset_imports=opsets, ir_version=9), output / "model.onnx"
    )


def _peer(name: str, _: Sizes, checkpoint: Path, output: Path, programs: Environments) -> None:
    script = Path(__file__).with_name("latency_peers.py")
    plain = checkpoint.parent / "ort-fp32" / "model.onnx"
    options = ["--candidate", name, "--checkpoint", checkpoint, "--plain", plain]
    options += ["--output", output]
    _run([programs.peers or sys.executable, script, *options])


def _optimum(_: Sizes, checkpoint: Path, output: Path, programs: Environments) -> None:
    """optimum-cli's two commands, with the settings for AVX512-VNNI that its guide names."""
    if programs.optimum is None:
        raise MeasurementError("optimum-cli is needed: --optimum .venv-optimum/bin/optimum-cli")
    with tempfile.TemporaryDirectory() as folder:
        task = ["--task", "text-classification", "--no-post-process"]
        _run([programs.optimum, "export", "onnx", "--model", checkpoint, *task, folder])
        options = ["--onnx_model", folder, "--avx512_vnni", "--per_channel", "-o", output]
        _run([programs.optimum, "onnxruntime", "quantize", *options])
    (output / "model_quantized.onnx").replace(output / "model.onnx")


def _run(command: Sequence[object]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasurementError(f"{command[0]} failed:\n{done.stderr[-2000:]}")


_Maker = Callable[[Sizes, Path, Path, Environments], None]
_MAKERS: dict[str, _Maker] = {
    "checkpoint": _checkpoint,
    "float": _float,
    "int8": partial(_quantized, 8, "cpu"),
    "int8-portable": partial(_quantized, 8, "portable"),
    "4bit": partial(_quantized, 4, "cpu"),
    "rate": _rate,
    "optimum": _optimum,
    **{name: partial(_peer, name) for name in MAKERS},
}
