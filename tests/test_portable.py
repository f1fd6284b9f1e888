"""The portable target: the ONNX standard alone, from PTQ to a verified file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from quantkit.exporter.gate import check_parity
from quantkit.exporter.inspect import optimized_operators
from quantkit.exporter.saving import open_model
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, parse_recipe, with_bits, with_changes, with_target
from quantkit.runtime import session_options
from tests.conftest import ROWS, batch_of, small_bert
from tests.models import small_model

LAYERS, LENGTH = 2, 12  # of the longest text that the gate reads, in tokens
GROUPS = {"weights.group": 16, "embeddings.group": 16}
PLAIN = Recipe(name="test", task="none", model="none")


def recipe_of(bits: int, **changes: object) -> Recipe:
    values = {name.replace("__", "."): value for name, value in changes.items()}
    # Which codes are chosen is no matter of the target: the cheapest way of rounding will do.
    values = {"rounding": {"name": "nearest"}} | (GROUPS if bits == 4 else {}) | values
    return with_target(with_changes(with_bits(PLAIN, bits), values), "portable")


RECIPES: Mapping[str, Recipe] = {
    "w8a8": recipe_of(8),
    "w4a8": recipe_of(4),
    "w4a8 per channel": recipe_of(4, weights__per="channel"),
    "w4a4": recipe_of(4, activations__bits=4),
    "w8a16": recipe_of(8, activations__bits=16),
    "w4a16": recipe_of(4, activations__bits=16),
    "partly": recipe_of(8, skip=["classifier", "*.layer.0.attention.self.key", "*.word_*"]),
}


def few_batches(rows: int = ROWS, pad: int = 0) -> list[Any]:
    """1 and 8 full ones and 3 with padding."""
    return gate_batches(rows, LENGTH, pad_token_id=pad)[::5]


def opened(proto: onnx.ModelProto) -> Any:  # noqa: ANN401
    return open_model(proto, session_options(1))


@pytest.fixture(scope="module")
def made(
    model: BertForSequenceClassification,
) -> Mapping[str, Quantized]:
    return {
        name: quantize(model, [batch_of(8, 12)], recipe=recipe, reachable_rows=ROWS)
        for name, recipe in RECIPES.items()
    }


@pytest.mark.parametrize("name", [*RECIPES, "float"])
def test_a_file_of_standard_operators_computes_the_models_answers(
    name: str, made: Mapping[str, Quantized], model: BertForSequenceClassification
) -> None:
    torch_model = model if name == "float" else made[name].model
    proto = build(torch_model, {}, "portable")
    assert {node.domain for node in proto.graph.node} == {""}
    assert [opset.domain for opset in proto.opset_import] == [""]
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    result = check_parity(torch_model, proto, few_batches())
    assert result.problems() == []
    assert (result.products > 0) == (name != "float")


@pytest.mark.parametrize(
    ("family", "bits"), [("Albert", 8), ("DistilBert", 4), ("Roberta", 8), ("Electra", 4)]
)
def test_every_family_has_portable_files(family: str, bits: int) -> None:
    sizes = {"weights__group": 8, "embeddings__group": 8} if bits == 4 else {}
    torch_model = small_model(family, "ForTokenClassification", layers=1)
    recipe = recipe_of(bits, **sizes)
    small = quantize(torch_model, [batch_of(8, 12)], recipe=recipe)
    proto = build(small.model, {}, "portable")
    rows = int(small.model.config.vocab_size)
    pad = int(small.model.config.pad_token_id)
    assert check_parity(small.model, proto, few_batches(rows, pad)).products


def test_all_8_bit_products_run_in_integers(made: Mapping[str, Quantized]) -> None:
    """In the graph that ONNX Runtime really runs: the pooler's two axes are the trap."""
    operators = optimized_operators(build(made["w8a8"].model, {}, "portable"))
    assert operators["MatMulIntegerToFloat"] == 4 * LAYERS + 1  # and the pooler
    assert operators.get("DequantizeLinear", 0) == 0
    assert operators.get("Gemm", 0) == 0
    assert operators["MatMul"] + operators["FusedMatMul"] == 2 * LAYERS + 1  # scores, classifier


def test_integers_are_bit_for_bit_after_optimisation(made: Mapping[str, Quantized]) -> None:
    """What ONNX Runtime makes of the pairs is the model's own integer product, to every bit."""
    proto = build(made["w8a8"].model, {}, "portable")
    layer = "bert.encoder.layer.0.attention.self"
    read, product = "bert.embeddings.LayerNorm", f"{layer}.query/product"
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (read, product)
    )
    feeds = {key: value.numpy() for key, value in batch_of(3, 11).items()}
    x, found = opened(proto).run([read, product], feeds)
    linears = [
        made["w8a8"].model.get_submodule(f"{layer}.{part}") for part in ("query", "key", "value")
    ]
    with torch.no_grad():
        expected = torch.cat([linear(torch.from_numpy(x)) for linear in linears], dim=-1)
    np.testing.assert_array_equal(found, expected.numpy())


def test_4_bit_weights_are_blocks_of_int4_and_tables_stay_in_4_bits(
    made: Mapping[str, Quantized],
) -> None:
    proto = build(made["w4a8"].model, {}, "portable")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nibbles = {name for name, tensor in stored.items() if tensor.data_type == TensorProto.INT4}
    readers = [node for node in proto.graph.node if set(node.input) & nibbles]
    assert len(readers) == 4 * LAYERS + 1
    assert {node.op_type for node in readers} == {"DequantizeLinear"}
    assert all(len(node.input) == 2 for node in readers)  # zero points are 0
    products = {
        name for node in proto.graph.node if node.op_type == "MatMul" for name in node.input
    }
    assert {node.output[0] for node in readers} <= products
    table = stored["bert.embeddings.word_embeddings.codes"]
    assert (table.data_type, list(table.dims)) == (TensorProto.UINT8, [ROWS, 24])
    scale = numpy_helper.to_array(stored["bert.encoder.layer.0.output.dense.block_scale"])
    assert scale.shape == (96 // 16, 48)


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
@pytest.mark.parametrize("part", ["codes", "scale", "bias", "input.scale"])
def test_the_gate_catches_one_wrong_number_where_products_are_floats(
    name: str, part: str, made: Mapping[str, Quantized]
) -> None:
    part = "block_scale" if (name, part) == ("w4a8", "scale") else part
    proto = build(made[name].model, {}, "portable")
    wanted = f"bert.encoder.layer.1.output.dense.{part}"
    tensor = next(each for each in proto.graph.initializer if each.name == wanted)
    raw = bytearray(tensor.raw_data)
    raw[0] ^= 1  # the last bit of a code or of a float
    tensor.raw_data = bytes(raw)
    with pytest.raises(ParityError, match=r"\(a\)"):
        check_parity(made[name].model, proto, few_batches()[:1])


def test_the_checkpoint_of_the_cpu_target_keeps_its_zero_points(quantized: Quantized) -> None:
    """One packed checkpoint serves both: codes as they are, uint8, and integer products."""
    proto = build(quantized.model, {}, "portable")
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    pairs = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    # A zero point in the middle makes int8 of its codes, as symmetric inputs have it.
    assert TensorProto.UINT8 in {kinds[node.input[2]] for node in pairs}
    operators = optimized_operators(proto)
    assert operators["MatMulIntegerToFloat"] == 4 * LAYERS + 1  # and the pooler
    result = check_parity(quantized.model, proto, gate_batches(ROWS, 64))
    assert result.problems() == []
    own = build(quantized.model, {}, "cpu")
    batch = {name: values.numpy() for name, values in batch_of(5, 21, seed=3).items()}
    found = [
        open_model(each, session_options(1)).run(["logits"], batch)[0] for each in (proto, own)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_a_wrong_zero_point_does_not_pass(quantized: Quantized) -> None:
    proto = build(quantized.model, {}, "portable")
    name = "bert.encoder.layer.1.output.dense.input.zero_point"
    (tensor,) = (each for each in proto.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.uint8(1), name))
    with pytest.raises(ParityError, match=r"\(a\)"):
        check_parity(quantized.model, proto, gate_batches(ROWS, 64))


def test_other_grids_are_refused_with_what_to_do(model: BertForSequenceClassification) -> None:
    recipe = with_changes(PLAIN, {"activations.per": "token"})
    tokens = quantize(model, [batch_of(4, 10)], recipe=recipe, reachable_rows=ROWS)
    with pytest.raises(CheckpointError, match=r"scale per token.*per: tensor"):
        build(tokens.model, {}, "portable")


def test_a_recipe_says_what_its_target_takes() -> None:
    values = {"name": "a", "task": "smsa", "model": "b", "export": {"target": "portable"}}
    with pytest.raises(RecipeError, match=r"portable.*activations\.symmetric: true; found false"):
        parse_recipe(values, "mine.yaml")
    parsed = parse_recipe(values | {"activations": {"symmetric": True}}, "mine.yaml")
    assert parsed.export.target == "portable"
    assert with_target(PLAIN, "portable").activations.symmetric
    with pytest.raises(RecipeError, match=r"export\.target is 'tpu'"):
        with_target(PLAIN, "tpu")


def test_a_folder_holds_a_file_for_each_target(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    short = small_model("Bert", layers=1, max_position_embeddings=16)
    small = quantize(short, [batch_of(8, 12)], recipe=recipe_of(4), reachable_rows=ROWS)
    portable = export(small.model, tokenizer, tmp_path, recipe=small.recipe).path
    assert portable == tmp_path / "onnx" / "portable" / "model_q4.onnx"
    texts = ["makanan enak sekali", "pelayanan buruk"]
    session = quantkit.load(tmp_path)
    assert session.path == portable
    other = export(small.model, tokenizer, tmp_path, target="cpu").path
    assert other == tmp_path / "onnx" / "model_q4.onnx"
    best = quantkit.load(tmp_path)
    assert best.path == other
    np.testing.assert_allclose(best.logits(texts), session.logits(texts), atol=2e-3)
    said = {p.key: p.value for p in onnx.load(portable).metadata_props}
    assert said["quantkit.target"] == "portable"
    assert said["quantkit.least_onnxruntime"] == "1.19"


def test_shared_layers_and_tables_are_stored_once() -> None:
    albert = small_model("Albert", layers=3)
    proto = build(albert, {}, "portable")
    sizes = [len(tensor.raw_data) for tensor in proto.graph.initializer]
    parameters = sum(p.numel() for p in albert.parameters() if p.requires_grad)
    assert sum(sizes) < 4 * parameters + 2000


def test_activations_and_heads_compute_what_transformers_computes() -> None:
    model = small_bert(layers=1)
    batch = batch_of(3, 9)
    batch["attention_mask"][0, 5:] = 0
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    proto = build(model, {}, "portable")
    found = opened(proto).run(["logits"], {key: value.numpy() for key, value in batch.items()})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
