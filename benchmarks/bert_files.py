"""The BERT-base files that `cpu_int8.py` times: quantkit's two, and the usual route's two."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from quantkit.errors import MeasurementError
from quantkit.exporter.bert import build
from quantkit.files import read_json, write_json
from quantkit.measure import environment
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, load_recipe, recipe_hash

__all__ = ["MANIFEST", "RECIPE", "Sizes", "count_multipliers", "make_files"]

RECIPE = Path(__file__).parent.parent / "recipes" / "indonlu" / "smsa.yaml"
CALIBRATION_BATCHES, CALIBRATION_SHAPE = 4, (8, 64)
MANIFEST = "made.json"


@dataclass(frozen=True)
class Sizes:
    """The model; the defaults are BERT-base with the rows that IndoBERT's tokenizer reaches."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocab: int = 30521


def make_files(sizes: Sizes, folder: Path) -> int:
    """Write every candidate's file, unless `folder` has them; the number of smoothing Muls."""
    recipe, manifest = load_recipe(RECIPE), folder / MANIFEST
    made = {
        "model": asdict(sizes),
        "recipe": recipe_hash(recipe),
        "packages": environment()["packages"],
    }
    if manifest.is_file() and (found := read_json(manifest))["made"] == made:
        return int(found["smoothing_multipliers"])
    manifest.unlink(missing_ok=True)  # it vouches for files that are about to change
    model = _model(sizes)
    onnx.save_model(build(model, {}), folder / "float.onnx")
    multipliers = _save_int8(model, sizes, recipe, folder / "int8.onnx")
    _save_plain(model, sizes, folder / "float-plain.onnx")
    _save_dynamic(folder / "float-plain.onnx", folder / "quantize_dynamic.onnx")
    write_json(manifest, {"made": made, "smoothing_multipliers": multipliers})
    return multipliers


def _model(sizes: Sizes) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate,
    )
    config.num_labels = 3
    model = BertForSequenceClassification(config)
    model.train(False)
    return model


def _batch(sizes: Sizes, shape: tuple[int, int], seed: int) -> dict[str, Tensor]:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(5, sizes.vocab, shape))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def _save_int8(model: PreTrainedModel, sizes: Sizes, recipe: Recipe, path: Path) -> int:
    """Write quantkit's integers; the number of smoothing Muls, which cost a little time."""
    batches = [_batch(sizes, CALIBRATION_SHAPE, seed) for seed in range(CALIBRATION_BATCHES)]
    result = quantize(model, batches, recipe=recipe)
    proto = build(result.model, {})
    expected, found = _smoothed_inputs(result), count_multipliers(proto)
    if found != expected or not found:
        raise MeasurementError(
            f"The INT8 file holds {found} smoothing multipliers and the recipe gives "
            f"{expected}: without them the comparison would flatter quantkit."
        )
    onnx.save_model(proto, path)
    return found


def _smoothed_inputs(result: Quantized) -> int:
    """Inputs whose smoothing vector could not move into the Linear before them."""
    return sum(choice.smoothing is not None and not choice.folded for choice in result.decisions)


def count_multipliers(proto: onnx.ModelProto) -> int:
    """The Mul nodes of a quantkit file that carry a smoothing vector."""
    return sum(
        node.op_type == "Mul" and any(name.endswith(".input.multiplier") for name in node.input)
        for node in proto.graph.node
    )


def _save_plain(model: PreTrainedModel, sizes: Sizes, path: Path) -> None:
    example = _batch(sizes, (2, 8), seed=0)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with warnings.catch_warnings():
        # The exporter against torch's own pytree: nothing that a caller could change.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        # All three inputs share their axes, as they should.
        warnings.filterwarnings("ignore", "# The axis name: (batch|length) will not", UserWarning)
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=example,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(example, axes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _save_dynamic(plain: Path, path: Path) -> None:
    # quantize_dynamic refuses torch's file: "Inferred shape and existing shape differ", as the
    # shapes it has stored of a Gemm's weights do not fit the MatMul it makes of the Gemm. The
    # pre-processing that ONNX Runtime recommends instead (quant_pre_process) gives up on this
    # graph: "Incomplete symbolic shape inference". Without the stored shapes of inner values
    # it works, and quantizes every product with weights.
    proto = onnx.load(plain)
    del proto.graph.value_info[:]
    bare = path.with_name(f"{path.stem}-input.onnx")
    onnx.save_model(proto, bare)
    try:
        quantize_dynamic(bare, path, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        bare.unlink()
