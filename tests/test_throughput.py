"""The graph for batches: the standard's attention, the same answers, every product open."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase
from typer.testing import CliRunner

from quantkit.cli import app
from quantkit.exporter import export
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import check_parity
from quantkit.exporter.inspect import optimized_operators
from quantkit.ptq import Quantized
from quantkit.recipe import Recipe, with_changes
from quantkit.runtime import session_options
from tests.conftest import ROWS, batch_of

LAYERS = 2


def _run(proto: onnx.ModelProto, size: int, length: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    batch = batch_of(size, length, seed=length)
    batch["attention_mask"][0, length // 2 + 1 :] = 0
    feeds = {name: values.numpy() for name, values in batch.items()}
    logits: np.ndarray = session.run(["logits"], feeds)[0]
    return logits


def test_four_integer_products_per_layer_and_the_attention_of_the_standard(
    quantized: Quantized,
) -> None:
    operators = optimized_operators(build(quantized.model, {}, purpose="throughput"))
    assert operators["MatMulIntegerToFloat"] == 4 * LAYERS + 1  # and the pooler
    assert not {"QAttention", "MultiHeadAttention", "DequantizeLinear"} & set(operators)
    assert operators["Attention"] == LAYERS
    assert operators.get("MatMul", 0) + operators.get("Gemm", 0) == 1  # the classifier


def test_both_graphs_give_the_same_answers(
    model: BertForSequenceClassification, quantized: Quantized
) -> None:
    for torch_model in (model, quantized.model):
        latency, throughput = (
            build(torch_model, {}, purpose=purpose) for purpose in ("latency", "throughput")
        )
        for size, length in ((1, 1), (3, 17), (8, 32)):
            np.testing.assert_allclose(
                _run(throughput, size, length), _run(latency, size, length), atol=1e-3
            )


def test_the_gate_reads_the_product_that_an_attention_operator_hides(
    model: BertForSequenceClassification, quantized: Quantized
) -> None:
    batches = gate_batches(ROWS, 64)
    hidden = check_parity(quantized.model, build(quantized.model, {}), batches)
    read = check_parity(quantized.model, build(quantized.model, {}, purpose="throughput"), batches)
    assert read.inexact_products == 0
    assert read.products > hidden.products
    check_parity(model, build(model, {}, purpose="throughput"), batches)


def test_a_recipe_or_the_caller_chooses(
    quantized: Quantized, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, tmp_path: Path
) -> None:
    chosen = with_changes(recipe, {"export.optimize_for": "throughput"})
    for name, optimize_for, expected in (
        ("a", None, "throughput"),
        ("b", "latency", "latency"),
    ):
        exported = export(
            quantized.model,
            tokenizer,
            tmp_path / name,
            recipe=chosen,
            optimize_for=optimize_for,  # type: ignore[arg-type]
        )
        proto = onnx.load(exported.path)
        properties = {each.key: each.value for each in proto.metadata_props}
        assert properties["quantkit.optimize_for"] == expected
        kinds = {node.op_type for node in proto.graph.node}
        assert ("QAttention" in kinds) is (expected == "latency")


def test_an_unknown_purpose_is_a_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--optimize-for", "size"])
    assert result.exit_code != 0
    assert "optimized for latency, throughput" in str(result.exception or result.output)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(name="chosen", task="smsa", model="none")
