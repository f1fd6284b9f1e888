"""`quantkit inspect` on files of this and of other tools."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import BertForSequenceClassification

from quantkit.errors import CheckpointError
from quantkit.exporter.bert import build
from quantkit.exporter.inspect import bytes_by_component
from quantkit.inspection import Inspection, inspect_file
from quantkit.ptq import Quantized
from tests.cli import invoke, succeed
from tests.conftest import batch_of

LAYERS = 2
LINEARS = 4 * LAYERS + 2  # query, key and value merged; pooler and classifier


@pytest.fixture(scope="module")
def plain(model: BertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float file of standard operators, as other tools begin with."""
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    onnx.save_model(build(model, {}, "portable"), path)
    return path


def precisions(found: Inspection) -> dict[str, int]:
    return dict(Counter(product.precision for product in found.products if product.weights))


def test_a_float_file_has_nothing_quantized(plain: Path) -> None:
    found = inspect_file(plain)
    assert precisions(found) == {"float": LINEARS}
    assert sum(not product.weights for product in found.products) == 2 * LAYERS  # attention's
    assert found.problems == [
        f"Nothing is quantized: all {LINEARS} products with weights are float."
    ]
    assert sum(found.bytes.values()) == found.size == plain.stat().st_size
    tables = (350 + 64 + 2) * 48 * 4
    assert found.bytes["embeddings"] == tables
    assert found.bytes["head"] == 4 * (48 * 3 + 3)
    assert found.opset == {"ai.onnx": 20}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._batches: Iterator[Any] = iter([batch_of(4, 12, seed=seed) for seed in range(3)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {name: ids.numpy() for name, ids in batch.items()}


def test_static_pairs_that_run_in_float_are_said_to(tmp_path: Path) -> None:
    """The trap: per-channel weights, a bias, an input of two axes."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(64, 96)).astype(np.float32)
    bias = generator.normal(size=96).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 96])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    source, made = tmp_path / "float.onnx", tmp_path / "static.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=9), source)

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": generator.normal(size=(8, 64)).astype(np.float32)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    quantize_static(
        source,
        made,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    found = inspect_file(made)
    assert precisions(found) == {"float": 1}
    assert found.problems[0].startswith("1 of 1 products with weights run in float: static QDQ")
    assert "Gemm" in found.problems[0]


def test_a_static_file_of_a_whole_encoder_says_how_much_runs_in_float(
    plain: Path, tmp_path: Path
) -> None:
    made = tmp_path / "static.onnx"
    quantize_static(plain, made, Reader(), per_channel=True, weight_type=QuantType.QInt8)
    found = inspect_file(made)
    counts = precisions(found)
    print(counts, found.problems, found.operators)
    assert counts["float"] + counts.get("int8", 0) == LINEARS
    assert any(
        f"of {LINEARS} products with weights run in float" in each for each in found.problems
    )


def test_a_dynamic_file_depends_on_the_batch_and_stays_on_the_host(
    plain: Path, tmp_path: Path
) -> None:
    made = tmp_path / "dynamic.onnx"
    quantize_dynamic(plain, made, per_channel=True, op_types_to_quantize=["MatMul"])
    found = inspect_file(made)
    assert precisions(found)["int8"] == LINEARS
    assert found.host_only["DynamicQuantizeLinear"] > 0
    assert any("depends on the texts beside it" in problem for problem in found.problems)
    assert any(problem.startswith("Embeddings are float") for problem in found.problems)


def test_4_bit_weights_of_onnxruntime_leave_tables_in_float(plain: Path, tmp_path: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(plain), block_size=16, accuracy_level=4)
    quantizer.process()
    made = tmp_path / "nbits.onnx"
    quantizer.model.save_model_to_file(str(made))
    found = inspect_file(made)
    assert precisions(found)["4-bit"] == LINEARS
    assert any("accuracy_level 4" in problem for problem in found.problems)
    assert any(problem.startswith("Embeddings are float") for problem in found.problems)


def test_own_files_have_nothing_wrong(quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(build(quantized.model, {"quantkit.target": "cpu"}), path)
    found = inspect_file(path)
    assert found.problems == []
    assert precisions(found) == {"int8": 4 * LAYERS + 1, "float": 1}  # the classifier
    named = bytes_by_component(path)
    norms = 2 * 48 * 4  # the embeddings' LayerNorm, which no lookup reads
    assert found.bytes["embeddings"] == named.embeddings - norms
    assert found.bytes["head"] == named.head
    assert sum(found.bytes.values()) == named.total
    assert found.target == "cpu"
    assert found.host_only["MatMulIntegerToFloat"] == 4 * LAYERS + 1


def test_weights_that_are_stored_twice_are_counted(
    model: BertForSequenceClassification, tmp_path: Path
) -> None:
    proto = build(model, {}, "portable")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensor = next(each for each in proto.graph.initializer if each.name == name)
    copy = proto.graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = "copy"
    node = next(node for node in proto.graph.node if name in node.input)
    node.input[1] = "copy"
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path)
    (problem,) = [each for each in inspect_file(path).problems if "more than once" in each]
    assert f"{96 * 48 * 4:,} bytes in vain" in problem


def test_the_command_prints_what_was_found(plain: Path, tmp_path: Path) -> None:
    printed = succeed("inspect", plain)
    assert f"products    float {LINEARS}" in printed
    assert "Problems:\n  - Nothing is quantized" in printed
    values = json.loads(succeed("inspect", plain, "--json"))
    assert values["size"] == plain.stat().st_size
    assert len(values["products"]) == LINEARS + 2 * LAYERS
    (tmp_path / "text.onnx").write_text("no graph", encoding="utf-8")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for path in (tmp_path / "text.onnx", tmp_path / "empty.onnx", tmp_path / "nowhere.onnx"):
        outcome = invoke("inspect", path)
        assert outcome.code == 2
        assert path.name in outcome.err
    with pytest.raises(CheckpointError, match="no such file"):
        inspect_file(tmp_path / "nowhere.onnx")
