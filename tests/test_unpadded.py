"""The cuda-unpadded target: what can be proven of its files where no GPU is at hand."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from transformers import PreTrainedTokenizerBase

from quantkit.errors import ParityError
from quantkit.exporter import export
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.cuda_table import host_operators
from quantkit.exporter.gate import check_end
from quantkit.exporter.graph import CONTRIB, OPSET
from quantkit.exporter.half import check_cuda
from quantkit.exporter.saving import open_model
from quantkit.exporter.unpadded import with_functions
from quantkit.files import read_json
from quantkit.inspection import inspect_file
from quantkit.onnx_file import Target
from quantkit.runtime import session_options
from tests.conftest import ROWS
from tests.models import FAMILIES, HEADS, quantized_for, small_model

TARGET: Target = "cuda-unpadded"
LAYERS = 2


def computed(nodes: list[onnx.NodeProto], **feeds: np.ndarray) -> list[np.ndarray]:
    """What the operators without a CPU kernel compute, as functions of others."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
    inputs = [
        helper.make_tensor_value_info(name, kinds[values.dtype], list(values.shape))
        for name, values in feeds.items()
    ]
    outputs = [name for node in nodes for name in node.output]
    graph = helper.make_graph(
        nodes, "test", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs]
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    found: list[np.ndarray] = open_model(with_functions(model), session_options(1)).run(None, feeds)
    return found


def removing(x: np.ndarray, counts: list[int]) -> list[np.ndarray]:
    outputs = ["tokens", "offset", "starts", "longest"]
    node = helper.make_node("RemovePadding", ["x", "counts"], outputs, domain=CONTRIB)
    return computed([node], x=x, counts=np.array(counts, np.int32))


def test_padding_is_removed_by_hand() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    tokens, offset, starts, longest = removing(x, [1, 3])
    assert tokens.tolist() == [[0, 1], [6, 7], [8, 9], [10, 11]]
    # Places of all tokens, and behind them those of padding.
    assert offset.tolist() == [[0, 3, 4], [5, 1, 2]]
    assert (starts.tolist(), longest.tolist()) == ([0, 1, 4], [3])
    node = helper.make_node("RestorePadding", ["tokens", "offset"], ["y"], domain=CONTRIB)
    (restored,) = computed([node], tokens=tokens, offset=offset)
    assert restored.tolist() == [[[0, 1], [0, 0], [0, 0]], [[6, 7], [8, 9], [10, 11]]]


def test_attention_stays_within_texts() -> None:
    """Against softmax attention of each text by itself, in NumPy."""
    generator, counts, heads, width = np.random.default_rng(0), [4, 1, 3], 2, 6
    rows = [generator.normal(size=(sum(counts), width)).astype(np.float32) for _ in range(3)]
    _, offset, starts, _ = removing(np.zeros((3, 5, width), np.float32), counts)
    node = helper.make_node(
        "PackedMultiHeadAttention",
        ["query", "key", "value", "", "offset", "starts"],
        ["y"],
        domain=CONTRIB,
        num_heads=heads,
    )
    feeds = dict(zip(("query", "key", "value"), rows, strict=True))
    (found,) = computed([node], **feeds, offset=offset, starts=starts)
    for first, last in pairwise(starts):
        query, key, value = (
            part[first:last].reshape(-1, heads, width // heads).swapaxes(0, 1) for part in rows
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(width // heads)
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected = (shares @ value).swapaxes(0, 1).reshape(-1, width)
        np.testing.assert_allclose(found[first:last], expected, atol=1e-6)


def test_other_files_are_as_they_were() -> None:
    proto = build(small_model("Bert"), {}, "cuda")
    assert with_functions(proto) == proto


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_head(family: str, head: str) -> None:
    model = small_model(family, head, layers=LAYERS)
    batches = gate_batches(ROWS, 16, pad_token_id=int(model.config.pad_token_id))
    proto = build(model, {}, TARGET)
    assert host_operators(proto) == {}
    assert check_cuda(model, proto, batches, TARGET).problems() == []
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("PackedMultiHeadAttention") == LAYERS
    assert kinds.count("RemovePadding") == 1
    assert kinds.count("RestorePadding") == (head != "ForSequenceClassification")


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_the_padded_files(
    bits: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = quantized_for(small_model("Bert"), bits, TARGET)
    made = export(model, tokenizer, tmp_path, target=TARGET)
    name = "model_quantized.onnx" if bits == 8 else "model_q4.onnx"
    assert made.path == tmp_path / "onnx" / TARGET / name
    assert made.parity.problems() == []
    assert (made.parity.products > 0) == (bits == 8)
    stored = {tensor.name: tensor for tensor in onnx.load(made.path).graph.initializer}
    padded = {tensor.name: tensor for tensor in build(model, {}, "cuda").graph.initializer}
    shared = [name for name in stored if "." in name]
    assert len(shared) > 40
    assert all(stored[name] == padded[name] for name in shared)
    assert {name for name in padded if "." in name} == set(shared)
    said = inspect_file(made.path)
    assert (said.host_only, said.problems) == ({}, [])
    assert said.operators["PackedMultiHeadAttention"] == LAYERS
    assert read_json(tmp_path / "config.json")["model_type"] == "bert"


def test_an_answer_that_is_not_the_models_is_found() -> None:
    """Attention that reads another text's end is no rounding."""
    model = small_model("Bert")
    proto = with_functions(build(model, {}, TARGET, single=True))
    batches = gate_batches(ROWS, 16)
    check_end(model, proto, batches, half=False)
    for node in proto.graph.node:
        if node.op_type == "PackedMultiHeadAttention":
            node.input[0], node.input[1] = node.input[1], node.input[0]
    with pytest.raises(ParityError, match=r"In single precision .* labels differ"):
        check_end(model, proto, batches, half=False)
