from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from quantkit.errors import CheckpointError, ParityError
from quantkit.exporter import export
from quantkit.exporter.answers import answers, difference
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.blocks import BlockErrors
from quantkit.exporter.gate import check_parity
from quantkit.exporter.inspect import bytes_by_component, optimized_operators
from quantkit.heads import Head
from quantkit.onnx_file import Target
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe
from quantkit.runtime import session_options
from tests.conftest import ROWS, batch_of, small_bert

LAYERS = 2


def _run(proto: onnx.ModelProto, batch: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    logits: np.ndarray = session.run(["logits"], {k: v.numpy() for k, v in batch.items()})[0]
    return logits


def test_four_integer_products_per_layer_and_none_in_float(quantized: Quantized) -> None:
    """In the graph that ONNX Runtime really runs, after its own optimisations."""
    operators = optimized_operators(build(quantized.model, {}))
    assert operators["MatMulIntegerToFloat"] == 4 * LAYERS + 1  # and the pooler
    assert operators["Attention"] == LAYERS
    floats = sum(operators.get(kind, 0) for kind in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"))
    assert floats == 1  # the classifier
    assert operators.get("DequantizeLinear", 0) == 0
    assert operators["QuantizeLinear"] == 4 * LAYERS + 1


def test_the_float_graph_has_merged_products(model: BertForSequenceClassification) -> None:
    operators = optimized_operators(build(model, {}))
    kinds = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
    assert sum(operators.get(kind, 0) for kind in kinds) == 4 * LAYERS + 2
    assert operators["Attention"] == LAYERS


@pytest.mark.parametrize(("size", "length"), [(1, 1), (1, 64), (7, 23)])
def test_batch_and_length_are_dynamic(
    model: BertForSequenceClassification, quantized: Quantized, size: int, length: int
) -> None:
    batch = batch_of(size, length, seed=length)
    batch["attention_mask"][0, length // 2 + 1 :] = 0
    for torch_model in (model, quantized.model):
        with torch.no_grad():
            expected = torch_model(**batch).logits.numpy()
        np.testing.assert_allclose(_run(build(torch_model, {}), batch), expected, atol=2e-3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations_compute_what_transformers_computes(activation: str) -> None:
    model = small_bert(layers=1)
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = type(
        model.bert.encoder.layer[0].intermediate
    )(model.config.__class__(hidden_act=activation)).intermediate_act_fn
    batch = batch_of(3, 9)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(_run(build(model, {}), batch), expected, rtol=1e-4, atol=1e-5)


def test_an_activation_without_an_operator_is_an_error() -> None:
    model = small_bert(layers=1)
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.Hardswish()
    with pytest.raises(CheckpointError, match="is a Hardswish"):
        build(model, {})


def test_the_gate_passes_a_sound_file(
    model: BertForSequenceClassification, quantized: Quantized
) -> None:
    batches = gate_batches(ROWS, 64)
    assert len(batches) == 3 * 3 * 2
    whole = check_parity(model, build(model, {}), batches)
    assert (whole.disagreements, whole.products) == (0, 0)
    result = check_parity(quantized.model, build(quantized.model, {}), batches)
    assert result.inexact_products == 0 < result.products
    assert result.problems() == []


def _changed(proto: onnx.ModelProto, name: str, change: float) -> onnx.ModelProto:
    """The model with one number of an initializer changed."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[0] += np.asarray(change).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
            return proto
    raise AssertionError(f"no initializer {name}")


LAYER = "bert.encoder.layer.1"


@pytest.mark.parametrize(
    ("name", "change", "test"),
    [
        (f"{LAYER}.output.dense.codes", 1, "(a)"),
        (f"{LAYER}.attention.self.query.scale", 1e-6, "(a)"),
        (f"{LAYER}.intermediate.dense.bias", 1e-5, "(a)"),
        (f"{LAYER}.output.dense.input.zero_point", 1, "(a)"),
        (f"{LAYER}.output.dense.input.multiplier", 0.5, "(b)"),
        (f"{LAYER}.output.LayerNorm.bias", 0.1, "(b)"),
        ("bert.embeddings.position_embeddings.scale", 0.1, "(b)"),
        ("classifier.weight", 0.1, "(b)"),
    ],
)
def test_the_gate_catches_one_wrong_number(
    quantized: Quantized, name: str, change: float, test: str
) -> None:
    proto = _changed(build(quantized.model, {}), name, change)
    with pytest.raises(ParityError) as caught:
        check_parity(quantized.model, proto, gate_batches(ROWS, 64))
    assert test in str(caught.value)


def test_the_gate_catches_a_forgotten_mask(quantized: Quantized) -> None:
    proto = build(quantized.model, {})
    for node in proto.graph.node:
        if node.op_type == "Attention":
            node.input[3] = ""
    with pytest.raises(ParityError, match=r"\(b\)"):
        check_parity(quantized.model, proto, gate_batches(ROWS, 64))


def test_gate_batches_hold_the_padding_id_at_padded_places_only() -> None:
    sizes = set()
    for arrays in gate_batches(20, 62, pad_token_id=1):
        ids, mask = arrays["input_ids"], arrays["attention_mask"]
        assert ((ids == 1) == (mask == 0)).all()
        assert (ids >= 0).all()
        assert (ids < 20).all()
        sizes.add(ids.shape)
    assert sizes == {(batch, length) for batch in (1, 3, 8) for length in (8, 15, 62)}
    assert max(arrays["input_ids"].shape[1] for arrays in gate_batches(20, 5)) == 5


WORDS = Head("words", ("a", "b"))


def test_words_differ_as_their_worst_token_and_padding_not_at_all() -> None:
    whole = np.tile(np.array([2.0, 1.0]), (5, 3, 1))  # five texts of three tokens
    other = whole.copy()
    mask = np.ones((5, 3), dtype=np.int64)
    mask[0, 2] = 0
    other[0, 2] = 9.0, 10.0  # padding
    other[1, 1] = 1.0, 2.0  # another label, and off by 1
    other[2:4, 0] = 2.5, 1.0
    found = difference(WORDS, [whole], [other], [mask], 0.0)
    assert (found.disagreements, found.size) == (1, 0.5)  # the worst text is set aside
    assert difference(WORDS, [], [], [], 0.0).size == 0.0


def test_a_tie_is_no_disagreement_and_nan_is_none() -> None:
    head = Head("multilabel", ("a", "b"))
    first = np.array([[1e-6, 1.0], [1.0, 1.0], [1.0, 1.0]])
    second = np.array([[-1e-6, 1.0], [1.0, 1.0], [1.0, np.nan]])
    masks = [np.ones((3, 4), dtype=np.int64)]
    assert difference(head, [first], [second], masks, 1e-5).disagreements == 1
    assert difference(head, [first], [second], masks, 1e-7).disagreements == 2


def test_features_are_means_over_tokens() -> None:
    vectors = np.arange(12.0).reshape(1, 3, 4)
    mask = np.array([[1, 1, 0]])
    assert answers(Head("features"), vectors, mask).tolist() == [[2.0, 3.0, 4.0, 5.0]]
    assert answers(WORDS, vectors, mask) is vectors


def test_a_file_that_fails_is_not_left_behind(
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(
        model: BertForSequenceClassification,
        metadata: dict[str, str],
        target: Target,
    ) -> onnx.ModelProto:
        proto = build(model, metadata, target)
        return _changed(proto, f"{LAYER}.output.dense.codes", 1)

    monkeypatch.setattr("quantkit.exporter.folder.build", wrong)
    with pytest.raises(ParityError):
        export(quantized.model, tokenizer, tmp_path)
    assert list(tmp_path.rglob("*.onnx*")) == []


def test_a_16_bit_checkpoint_is_quantized_and_exported(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    half = small_bert(layers=1).bfloat16()
    with pytest.raises(CheckpointError, match=r"is bfloat16.*model\.float\(\)"):
        export(half, tokenizer, tmp_path / "float")
    small = quantize(half, [batch_of(4, 10)], reachable_rows=ROWS)
    assert export(small.model, tokenizer, tmp_path / "int8").parity.problems() == []
    assert next(half.parameters()).dtype == torch.bfloat16  # the caller's model is left alone


def test_the_gate_takes_a_partly_quantized_model() -> None:
    skip = ("classifier", "*.layer.0.attention.self.key", "*.layer.1.output.dense", "*.word_*")
    recipe = Recipe(name="a", task="b", model="c", skip=skip)
    partly = quantize(small_bert(), [batch_of(4, 10)], recipe=recipe).model
    result = check_parity(partly, build(partly, {}), gate_batches(ROWS, 32))
    assert result.problems() == []
    operators = optimized_operators(build(partly, {}))
    # Of eight products and the pooler's, those of layer 0's key and of layer 1's output are float.
    assert operators["MatMulIntegerToFloat"] == 9 - 2


def test_an_exported_folder_is_complete_and_says_what_it_is(
    quantized: Quantized, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    exported = export(quantized.model, tokenizer, tmp_path, recipe=quantized.recipe)
    assert exported.path == tmp_path / "onnx" / "model_quantized.onnx"
    assert {"config.json", "tokenizer.json", "onnx"} <= {p.name for p in tmp_path.iterdir()}
    model = onnx.load(exported.path)
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["quantkit.target"] == "cpu"
    assert properties["quantkit.labels"] == "positive\nneutral\nnegative"
    assert properties["quantkit.max_length"] == "64"
    assert len(properties["quantkit.recipe_hash"]) == 16
    assert [value.name for value in model.graph.input] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert [value.name for value in model.graph.output] == ["logits"]


def test_bytes_by_component_add_up_and_shrink(
    model: BertForSequenceClassification,
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    sizes = {}
    for name, torch_model in (("float", model), ("int8", quantized.model)):
        path = export(torch_model, tokenizer, tmp_path / name).path
        sizes[name] = bytes_by_component(path)
        assert sizes[name].total == path.stat().st_size
    # float32 tables of 350, 64 and 2 rows of 48; int8 with a float32 scale a row, 300 rows left;
    # the type table stays in float
    assert sizes["float"].embeddings == (350 + 64 + 2) * 48 * 4 + 2 * 48 * 4
    assert sizes["int8"].embeddings == (300 + 64) * (48 + 4) + 2 * 48 * 4 + 2 * 48 * 4
    assert sizes["int8"].encoder < 0.4 * sizes["float"].encoder
    assert sizes["int8"].head == sizes["float"].head


def test_a_flip_in_tokens_that_are_alike_counts_once() -> None:
    expected = torch.zeros(1, 50, 10, dtype=torch.uint8)
    expected[0, 0] = 1
    found = expected.numpy().copy()
    found[0, 1:, 3] = 1  # 49 tokens of one kind
    found[0, 0, 5] = 2
    errors = BlockErrors()
    errors.codes(found, expected)
    assert errors.code_distance == 1
    assert errors.code_share == 1 / 20  # two kinds of tokens, two flips, one set aside
