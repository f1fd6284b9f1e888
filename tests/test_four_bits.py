"""4-bit weights, float and per-token inputs: the line from PTQ to a verified file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from quantkit.errors import RecipeError
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import check_parity
from quantkit.exporter.graph import GraphWriter
from quantkit.exporter.inspect import bytes_by_component, optimized_operators
from quantkit.modules import QuantEmbedding, QuantLinear, TokenQuantizer
from quantkit.packed import load_packed, save_packed
from quantkit.ptq import LayerStore, Quantized, quantize
from quantkit.recipe import Recipe, with_bits, with_changes
from tests.conftest import ROWS, batch_of
from tests.constant_values import constant_value
from tests.models import small_model

Batches = list[dict[str, torch.Tensor]]
GROUPS = {"weights.group": 16, "embeddings.group": 16}
WORDS = "bert.embeddings.word_embeddings"


def _recipe(bits: int = 4, **changes: object) -> Recipe:
    base = with_bits(Recipe(name="test", task="none", model="none"), bits)
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return with_changes(base, (GROUPS if bits == 4 else {}) | values)


def _made(model: BertForSequenceClassification, batches: Batches, recipe: Recipe) -> Quantized:
    return quantize(model, batches, recipe=recipe, reachable_rows=ROWS)


def _noise(model: nn.Module, other: nn.Module) -> float:
    """Mean squared difference of logits over the float logits' variance."""
    batch = batch_of(32, 20, seed=5)
    with torch.no_grad():
        exact, found = model(**batch).logits, other(**batch).logits
    return float((found - exact).square().mean() / exact.var())


@pytest.fixture(scope="module")
def four(model: BertForSequenceClassification, batches: Batches) -> Quantized:
    return _made(model, batches, _recipe())


VARIANTS: Mapping[str, Recipe] = {
    "w4a8": _recipe(),
    "w4a16": _recipe(activations__bits=16),
    "w4a4": _recipe(activations__bits=4),
    "per channel": _recipe(weights__per="channel", embeddings__per="row"),
    "per token": _recipe(activations__per="token"),
    "symmetric": _recipe(activations__symmetric=True),
    "no frequent rows": _recipe(embeddings__frequent=0),
    "w8a16": _recipe(8, activations__bits=16),
    "w8a8 per token": _recipe(8, activations__per="token"),
    "naive": _recipe(8, weights__per="tensor", smoothing={"name": "none"}),
    "corrected": _recipe(8, bias_correction=True),
    "compensated": _recipe(compensation={}),
    "eight bits": _recipe(eight_bits=["*.output.dense", "*.query"]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_file_of_every_grid_computes_the_models_answers(
    name: str, model: BertForSequenceClassification, batches: Batches
) -> None:
    made = _made(model, batches, VARIANTS[name])
    proto = build(made.model, {})
    found = check_parity(made.model, proto, gate_batches(ROWS, 64, pad_token_id=0, sentences=[]))
    assert found.problems() == []
    assert (found.products > 0) == (VARIANTS[name].activations.bits < 16)
    assert _noise(model, made.model) < (0.5 if "4" in name else 0.2)


@pytest.mark.parametrize("family", ["Albert", "DistilBert", "Roberta", "Electra"])
def test_every_family_has_4_bit_files(family: str, batches: Batches) -> None:
    model = small_model(family, layers=2)
    recipe = _recipe(weights__group=8, embeddings__group=8)
    made = quantize(model, batches, recipe=recipe)
    proto = build(made.model, {})
    reachable = int(model.config.vocab_size)
    batches_of_gate = gate_batches(reachable, 32, pad_token_id=0, sentences=[])
    assert check_parity(made.model, proto, batches_of_gate).problems() == []


def test_weights_take_half_a_byte_and_run_as_int8(four: Quantized, tmp_path: Path) -> None:
    proto = build(four.model, {})
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    codes = [kind for name, kind in kinds.items() if name.endswith("dense.codes")]
    assert codes
    assert set(codes) == {onnx.TensorProto.INT4}
    factors = [kind for name, kind in kinds.items() if name.endswith("dense.multipliers")]
    assert factors
    assert set(factors) == {onnx.TensorProto.INT4}
    assert build(four.model, {}, "portable").opset_import[0].version == 21
    assert proto.opset_import[0].version == 23  # of its attention
    operators = optimized_operators(proto)
    assert operators["MatMulIntegerToFloat"] == 2 * 4 + 1
    assert operators["Cast"] <= 8  # what is left casts inputs and gathered rows, not weights
    assert not {"QLinearConv", "Transpose"} & set(operators)
    assert "ScatterND" not in operators
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path)
    encoder = 2 * (4 * 48 * 48 + 2 * 48 * 96) + 48 * 48  # weights
    assert bytes_by_component(path).encoder < 0.5 * encoder + encoder / 16 + 12_000


def test_the_files_int8_weight_is_the_models(four: Quantized) -> None:
    proto = build(four.model, {})
    name = "bert.encoder.layer.0.output.dense"
    module = four.model.get_submodule(name)
    assert isinstance(module, QuantLinear)
    product = next(node for node in proto.graph.node if node.output[0] == f"{name}/product")
    found = constant_value(proto, product.input[1])
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, module.integers.wide().numpy().T)


def test_the_product_of_codes_and_multipliers_is_onnxs_and_the_runtimes() -> None:
    """All codes and stored multipliers, and products beyond int8, where all three saturate."""
    factors = np.arange(-8, 8, dtype=np.int8)[:, None, None]
    codes = np.broadcast_to(np.arange(-127, 128, dtype=np.int8), (1, 16, 255))
    graph = GraphWriter()
    one, zero = graph.constant("one", np.float32(1)), graph.constant("zero", np.int8(0))
    middle = graph.constant("middle", np.int8(-9))
    left, right = graph.constant("codes", codes), graph.constant("factors", factors)
    inputs = [left, one, zero, right, one, middle, one, zero]
    product = graph.add("QLinearConv", *inputs, group=16, kernel_shape=[1])
    wide = graph.add("Cast", product, to=onnx.TensorProto.FLOAT, name="wide")
    proto = graph.finish({}, wide, codes.shape, {})
    expected = np.clip(codes * (factors[:, 0].astype(int) + 9), -128, 127)
    (runtimes,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {})
    (onnxs,) = ReferenceEvaluator(proto).run(None, {})
    np.testing.assert_array_equal(runtimes, expected)
    np.testing.assert_array_equal(onnxs, expected)
    np.testing.assert_array_equal(constant_value(proto, product), expected)


def test_frequent_rows_keep_8_bits_and_all_others_are_coarser(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    counts = torch.zeros(ROWS, dtype=torch.int64)
    counts[torch.tensor([7, 40, 123])] = torch.tensor([5, 9, 2])
    recipe = _recipe(embeddings__frequent=2)
    made = quantize(model, batches, recipe=recipe, reachable_rows=ROWS, word_counts=counts)
    table = made.model.get_submodule(WORDS)
    assert isinstance(table, QuantEmbedding)
    assert table.frequent_rows is not None
    assert table.frequent_rows.tolist() == [7, 40]
    exact = model.bert.embeddings.word_embeddings.weight[:ROWS].detach()
    error = (table(torch.arange(ROWS)) - exact).square().sum(1) / exact.square().sum(1)
    frequent = torch.zeros(ROWS, dtype=torch.bool)
    frequent[[7, 40]] = True
    error[0] = 1.0  # padding's row is zero
    assert float(error[frequent].max()) < 0.1 * float(error[~frequent].min())


def test_at_most_a_quarter_of_a_table_keeps_8_bits(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    """With 2,048 rows of a smaller table the 4-bit codes would come on top of an 8-bit table."""
    counts = torch.ones(ROWS, dtype=torch.int64)
    recipe = _recipe(embeddings__frequent=2048)
    made = quantize(model, batches, recipe=recipe, reachable_rows=ROWS, word_counts=counts)
    table = made.model.get_submodule(WORDS)
    assert isinstance(table, QuantEmbedding)
    assert table.frequent_rows is not None
    assert len(table.frequent_rows) == ROWS // 4
    eight = quantize(model, batches, reachable_rows=ROWS).model.get_submodule(WORDS)
    sizes = [sum(b.nbytes for b in each.buffers()) for each in (table, eight)]
    assert sizes[0] < sizes[1]


def test_position_and_type_tables_keep_8_bits(four: Quantized) -> None:
    bits = {
        p.module.rpartition(".")[2]: p.bits
        for p in four.plan.placements
        if "embeddings" in p.module
    }
    assert bits == {"word_embeddings": 4, "position_embeddings": 8, "token_type_embeddings": None}


def test_gptq_and_outlier_scaling_halve_the_noise(
    model: BertForSequenceClassification, batches: Batches, four: Quantized
) -> None:
    plain = _recipe(smoothing={"name": "none"}, rounding={"name": "nearest"})
    naive = _noise(model, _made(model, batches, plain).model)
    assert _noise(model, four.model) < 0.5 * naive


def test_decisions_say_what_each_input_costs(four: Quantized) -> None:
    assert {decision.bits for decision in four.decisions} == {4}
    assert all(0.0 < decision.error < 0.2 for decision in four.decisions)


def test_eight_bits_keeps_what_it_names_and_what_is_bound_to_it(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    made = _made(model, batches, VARIANTS["eight bits"])
    bits = {p.module: p.bits for p in made.plan.placements if p.kind == "linear"}
    layer = "bert.encoder.layer.1."
    assert bits[layer + "output.dense"] == bits[layer + "attention.self.value"] == 8
    assert bits[layer + "intermediate.dense"] == 4
    reasons = {p.module: p.reason for p in made.plan.placements}
    assert "reads the same tensor" in reasons[layer + "attention.self.value"]


@pytest.mark.parametrize("group", [32, 20])  # 20 does not even divide the whole matrix
def test_a_group_that_does_not_fit_names_those_that_do(
    group: int, model: BertForSequenceClassification, batches: Batches
) -> None:
    words = rf"weights.group is {group}.*48 columns.*8, 12, 16, 24, 48"
    with pytest.raises(RecipeError, match=words):
        _made(model, batches, _recipe(weights__group=group))


@pytest.mark.parametrize("name", ["w4a8", "w4a16", "per token", "no frequent rows", "eight bits"])
def test_a_packed_checkpoint_comes_back_bit_for_bit(
    name: str,
    model: BertForSequenceClassification,
    batches: Batches,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    made = _made(model, batches, VARIANTS[name])
    save_packed(made, tokenizer, tmp_path, max_length=64)
    loaded = load_packed(tmp_path)
    saved = made.model.state_dict()
    assert saved.keys() == loaded.model.state_dict().keys()
    for key, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, saved[key]), key
        assert tensor.dtype == saved[key].dtype
    batch = batch_of(8, 12)
    with torch.no_grad():
        assert torch.equal(loaded.model(**batch).logits, made.model(**batch).logits)


def test_a_token_quantizers_answer_does_not_depend_on_its_neighbours(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    made = _made(model, batches, VARIANTS["per token"])
    kinds = {type(m) for m in made.model.modules()}
    assert TokenQuantizer in kinds
    batch = batch_of(6, 12, seed=3)
    with torch.no_grad():
        together = made.model(**batch).logits
        alone = [made.model(**{k: v[i : i + 1] for k, v in batch.items()}).logits for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


class _Killed(Exception):  # noqa: N818
    pass


def test_a_killed_quantization_goes_on_where_it_was(
    model: BertForSequenceClassification, batches: Batches, four: Quantized, tmp_path: Path
) -> None:
    folder = tmp_path / "layers"

    def kill(what: str, done: int, _total: int) -> None:
        if what == "rounding" and done == 5:
            raise _Killed

    def run(progress: object) -> Quantized:
        return quantize(
            model,
            batches,
            recipe=four.recipe,
            reachable_rows=ROWS,
            store=LayerStore(folder),
            progress=progress,  # type: ignore[arg-type]
        )

    with pytest.raises(_Killed):
        run(kill)
    stored = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 4 <= len(stored) < 9
    resumed = run(None)
    for name, tensor in four.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stored.items())
    # Another recipe must not take these layers.
    other = with_changes(four.recipe, {"rounding": {"name": "nearest"}})
    fresh = quantize(model, batches, recipe=other, store=LayerStore(folder), reachable_rows=ROWS)
    name = "bert.encoder.layer.0.output.dense.codes"
    assert not torch.equal(fresh.model.state_dict()[name], four.model.state_dict()[name])


def test_compensation_brings_the_answers_nearer(model: BertForSequenceClassification) -> None:
    texts = [batch_of(64, 20, seed=seed) for seed in (7, 8, 9, 10)]
    made = [_made(model, texts, VARIANTS[name]).model for name in ("w4a8", "compensated")]
    plain, compensated = (_noise(model, each) for each in made)
    assert compensated < plain
