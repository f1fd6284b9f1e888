"""The cuda target: what can be proven of its files where no GPU is at hand."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

import quantkit
from quantkit.errors import CheckpointError, ParityError, RecipeError
from quantkit.exporter import export
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.cuda_table import host_operators
from quantkit.exporter.half import check_cuda
from quantkit.exporter.inspect import optimized_operators
from quantkit.inspection import inspect_file
from quantkit.modules import QuantLinear
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, parse_recipe, with_bits, with_changes, with_target
from tests.conftest import ROWS, batch_of
from tests.models import small_model

LAYERS = 2
PLAIN = Recipe(name="test", task="none", model="none")


def recipe_of(bits: int, **changes: object) -> Recipe:
    values = {name.replace("__", "."): value for name, value in changes.items()}
    groups = {"weights.group": 16, "embeddings.group": 16} if bits == 4 else {}
    return with_target(with_changes(with_bits(PLAIN, bits), groups | values), "cuda")


RECIPES: Mapping[str, Recipe] = {
    "w4a16": recipe_of(4),
    "w4a16 one level": recipe_of(4, weights__per="channel", embeddings__per="row"),
    "w8a8": recipe_of(8),
    "w8a16": recipe_of(8, activations__bits=16),
}


@pytest.fixture(scope="module")
def made(
    model: BertForSequenceClassification, batches: list[dict[str, torch.Tensor]]
) -> Mapping[str, Quantized]:
    return {
        name: quantize(model, batches, recipe=recipe, reachable_rows=ROWS)
        for name, recipe in RECIPES.items()
    }


@pytest.mark.parametrize("name", [*RECIPES, "float"])
def test_a_file_and_its_twin_compute_the_models_answers(
    name: str, made: Mapping[str, Quantized], model: BertForSequenceClassification
) -> None:
    torch_model = model if name == "float" else made[name].model
    proto = build(torch_model, {}, "cuda")
    assert host_operators(proto) == {}
    found = check_cuda(torch_model, proto, gate_batches(ROWS, 24))
    assert found.problems() == []
    assert (found.products > 0) == (name == "w8a8")  # and not one of them is inexact
    assert found.half_disagreements == 0
    assert 0.0 < (found.half_difference or 0.0) < 0.5  # it is in half precision


def test_what_runs_on_the_host_is_counted(quantized: Quantized) -> None:
    host = host_operators(build(quantized.model, {}, "cpu"))
    assert host == {"MatMulIntegerToFloat": 4 * LAYERS + 1}


def test_operators_are_fused_and_products_are_what_they_should_be(
    made: Mapping[str, Quantized],
) -> None:
    """In the graph that ONNX Runtime runs, of the twin."""
    operators = optimized_operators(build(made["w4a16"].model, {}, "cuda", single=True))
    assert operators["MatMulNBits"] == 4 * LAYERS + 1
    assert operators["GatherBlockQuantized"] == 1
    assert operators["Attention"] == operators["BiasGelu"] == LAYERS
    assert operators["SkipLayerNormalization"] == 2 * LAYERS + 1
    operators = optimized_operators(build(made["w8a8"].model, {}, "cuda", single=True))
    assert operators["MatMulInteger"] == operators["QuantizeLinear"] == 4 * LAYERS + 1


def test_weights_of_4_bits_take_half_a_byte(made: Mapping[str, Quantized]) -> None:
    proto = build(made["w4a16"].model, {}, "cuda")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    name = "bert.encoder.layer.0.intermediate.dense"
    codes = numpy_helper.to_array(stored[f"{name}.codes"])
    module = made["w4a16"].model.get_submodule(name)
    assert isinstance(module, QuantLinear)
    assert module.multipliers is not None
    assert codes.shape == (96, 3, 8)  # outputs, blocks of 16 inputs, bytes
    low, high = codes & 15, codes >> 4
    found = np.stack([low, high], -1).reshape(96, 48).astype(np.int8) - 8
    np.testing.assert_array_equal(found, module.integers.codes.numpy())
    scale = numpy_helper.to_array(stored[f"{name}.block_scale"])
    assert scale.dtype == np.float16
    expected = (module.scale * module.multipliers).numpy().astype(np.float16)
    np.testing.assert_array_equal(scale.reshape(96, 3), expected)
    kinds = {tensor.data_type for tensor in stored.values()}
    assert TensorProto.FLOAT not in kinds


def test_a_number_that_is_not_the_twins_is_found(made: Mapping[str, Quantized]) -> None:
    proto = build(made["w4a16"].model, {}, "cuda")
    tensor = next(t for t in proto.graph.initializer if t.name.endswith("output.dense.block_scale"))
    raw = bytearray(tensor.raw_data)
    raw[0] ^= 1
    tensor.raw_data = bytes(raw)
    with pytest.raises(ParityError, match=r"not its float32 twin.*output\.dense\.block_scale"):
        check_cuda(made["w4a16"].model, proto, gate_batches(ROWS, 8))


def test_weights_beyond_half_precision_are_refused() -> None:
    wide = small_model("Bert")
    with torch.no_grad():
        wide.get_parameter("bert.encoder.layer.0.output.LayerNorm.bias")[0] = 1e5
    with pytest.raises(CheckpointError, match=r"LayerNorm\.bias holds 1e\+05.*--target cpu"):
        build(wide, {}, "cuda")


@pytest.mark.parametrize("family", ["Albert", "DistilBert", "Roberta", "Electra"])
def test_every_family_has_files(family: str) -> None:
    torch_model = small_model(family)
    assert host_operators(build(torch_model, {}, "cuda")) == {}
    pad = int(torch_model.config.pad_token_id)
    batches = gate_batches(ROWS, 16, pad_token_id=pad)
    assert check_cuda(torch_model, build(torch_model, {}, "cuda"), batches).problems() == []


def test_what_the_target_cannot_write_is_said_with_what_to_do(
    quantized: Quantized, model: BertForSequenceClassification
) -> None:
    with pytest.raises(CheckpointError, match=r"zero point .*--target cuda"):
        build(quantized.model, {}, "cuda")
    recipe = recipe_of(4, weights__group=8)
    small = quantize(model, [batch_of(4, 10)], recipe=recipe, reachable_rows=ROWS)
    with pytest.raises(CheckpointError, match=r"every 8 inputs.*16, 32, 64 or 128"):
        build(small.model, {}, "cuda")
    values = {"name": "a", "task": "smsa", "model": "b", "export": {"target": "cuda"}}
    with pytest.raises(RecipeError, match=r"'cuda', which takes activations\.bits: 16; found 8"):
        parse_recipe(values | {"weights": {"bits": 4}}, "mine.yaml")


def test_a_folder_with_a_cuda_file_is_opened_on_cuda_only(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = export(model, tokenizer, tmp_path, target="cuda").path
    assert path == tmp_path / "onnx" / "cuda" / "model_fp16.onnx"
    with pytest.raises(CheckpointError, match=r"one for cuda only.*quantkit export .*--target cpu"):
        quantkit.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"was exported for cuda.*--target cpu"):
        quantkit.load(path)
    found = inspect_file(path)
    assert found.target == "cuda"
    assert found.host_only == {}
    assert found.kinds["float16"] > 0.9 * sum(found.kinds.values())
    assert onnx.load(path).graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
