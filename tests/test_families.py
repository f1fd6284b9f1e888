"""Every family with every head: quantized, packed, exported through the gate, reopened."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.encoder import describe
from quantkit.errors import CheckpointError
from quantkit.exporter import export
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import check_parity
from quantkit.exporter.inspect import bytes_by_component, optimized_operators
from quantkit.modules import QuantEmbedding, QuantLinear
from quantkit.packed import load_packed, save_packed
from quantkit.placement import swap
from quantkit.ptq import Quantized, quantize
from quantkit.runtime import session_options
from tests.conftest import ROWS, batch_of
from tests.models import (
    FAMILIES,
    HEADS,
    HIDDEN,
    LABELS,
    LENGTH,
    NARROW,
    answers_of,
    quantized,
    small_config,
    small_model,
)

LAYERS = 2
SEQUENCE, WORDS, BARE = HEADS

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One family with one head, float and quantized."""

    family: str
    head: str
    model: PreTrainedModel
    quantized: Quantized

    @property
    def output(self) -> str:
        return "last_hidden_state" if self.head == BARE else "logits"


@pytest.fixture(scope="module", params=[(family, head) for family in FAMILIES for head in HEADS])
def case(request: pytest.FixtureRequest) -> Case:
    family, head = request.param
    model = small_model(family, head)
    return Case(family, head, model, quantized(model))


def _padded(size: int, length: int, padding: int) -> Batch:
    """A batch whose first text is short, with the padding id behind it."""
    batch = batch_of(size, length, seed=length)
    batch["attention_mask"][0, length // 2 :] = 0
    batch["input_ids"][0, length // 2 :] = padding
    batch["token_type_ids"][1:, length // 2 :] = 1
    return batch


def _of_file(source: Path | onnx.ModelProto, batch: Batch) -> np.ndarray:
    content = str(source) if isinstance(source, Path) else source.SerializeToString()
    session = onnxruntime.InferenceSession(
        content, session_options(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    result: np.ndarray = session.run(None, {name: batch[name].numpy() for name in names})[0]
    return result


def _close(found: np.ndarray, expected: torch.Tensor, batch: Batch, head: str) -> bool:
    """Within a rounding flip's reach of the model's answers, at tokens that are no padding."""
    reference = expected.numpy()
    if head != SEQUENCE:
        mask = batch["attention_mask"].numpy() == 1
        found, reference = found[mask], reference[mask]
    error = np.square(found - reference).mean()
    return bool(error <= 1e-4 * np.square(reference).mean())


def test_linears_and_tables_are_quantized_and_the_classifier_is_not(case: Case) -> None:
    plan = describe(case.quantized.model)
    kinds = {name: type(module) for name, module in case.quantized.model.named_modules()}
    inside = {name for shared in plan.inputs() for name in shared.linears}
    classifier = plan.head.classifier.linears if plan.head.classifier else ()
    assert {name for name, kind in kinds.items() if kind is QuantLinear} == inside - {*classifier}
    assert all(kinds[name] is nn.Linear for name in classifier)
    assert {name for name, kind in kinds.items() if kind is QuantEmbedding} == {
        plan.embedding.words,
        plan.embedding.positions,  # types stay in float
    }
    # What the task does not use, a bare model's pooler, is left alone.
    others = {name for name, kind in kinds.items() if kind is nn.Linear} - {*classifier}
    assert all(name.startswith("pooler") and case.head == BARE for name in others)


class _WithoutInputRounding(nn.Module):
    """A QuantLinear in float: smoothing, folds and 8-bit weights, inputs as they are."""

    def __init__(self, module: QuantLinear) -> None:
        super().__init__()
        multiplier = module.input_quantizer.multiplier
        self.multiplier = torch.ones(()) if multiplier is None else multiplier
        self.weight, self.bias = module.codes * module.scale, module.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x * self.multiplier, self.weight, self.bias)


def test_smoothing_and_folds_keep_the_function(case: Case) -> None:
    smooth = copy.deepcopy(case.quantized.model)
    integers = {n: m for n, m in smooth.named_modules() if isinstance(m, QuantLinear)}
    swap(smooth, {name: _WithoutInputRounding(module) for name, module in integers.items()})
    batch = _padded(16, 20, describe(case.model).pad_token_id)
    # Weights of 8 bits lose little; a factor at the wrong place would leave no signal.
    assert 0.0 < _noise(case, smooth, batch) < 0.02
    assert _noise(case, case.quantized.model, batch) < 0.25


def _noise(case: Case, model: PreTrainedModel, batch: Batch) -> float:
    """Squared error over the variance of the float model's answers."""
    whole, found = answers_of(case.model, batch), answers_of(model, batch)
    if case.head != SEQUENCE:
        kept = batch["attention_mask"] == 1
        whole, found = whole[kept], found[kept]
    return float((whole - found).square().mean(0).sum() / whole.var(0).sum())


def test_a_packed_folder_loads_back_bit_for_bit(
    case: Case, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_packed(case.quantized, tokenizer, tmp_path, max_length=LENGTH)
    loaded = load_packed(tmp_path).model
    before, after = case.quantized.model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    batch = _padded(3, 14, describe(loaded).pad_token_id)
    assert torch.equal(answers_of(case.quantized.model, batch), answers_of(loaded, batch))


def test_both_files_pass_the_gate_and_answer_like_torch(
    case: Case, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    batch = _padded(5, 21, describe(case.model).pad_token_id)
    for name, model in (("float", case.model), ("int8", case.quantized.model)):
        exported = export(model, tokenizer, tmp_path / name, max_length=LENGTH)
        assert exported.parity.problems() == []
        found = _of_file(exported.path, batch)
        assert found.shape == answers_of(model, batch).shape
        assert _close(found, answers_of(model, batch), batch, case.head)
        sizes = bytes_by_component(exported.path)
        assert sizes.total == exported.path.stat().st_size
        assert (sizes.head > 0) == (case.head != BARE)


def test_a_file_takes_and_gives_what_the_family_has(case: Case) -> None:
    file = build(case.quantized.model, {})
    inputs = [value.name for value in file.graph.input]
    types = case.family in ("Bert", "Albert", "Electra")
    assert inputs == ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    (output,) = file.graph.output
    shape = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
    width: list[str | int] = [HIDDEN if case.head == BARE else len(LABELS)]
    assert output.name == case.output
    assert shape == (["batch"] if case.head == SEQUENCE else ["batch", "length"]) + width


def test_four_integer_products_per_layer(case: Case) -> None:
    """In the graph that ONNX Runtime runs; beside them a projection and a head's first Linear."""
    plan = describe(case.quantized.model)
    operators = optimized_operators(build(case.quantized.model, {}))
    others = (plan.embedding.projection is not None) + (plan.head.dense is not None)
    assert operators["Attention"] == LAYERS
    assert operators["MatMulIntegerToFloat"] == 4 * LAYERS + others
    assert operators["QuantizeLinear"] == 4 * LAYERS + others
    floats = sum(operators.get(kind, 0) for kind in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"))
    assert floats == (case.head != BARE)


def _bare(family: str, **settings: Any) -> PreTrainedModel:  # noqa: ANN401
    kind = getattr(transformers, f"{family}Model")
    model: PreTrainedModel = kind(small_config(family, **settings))
    return model


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "Electra"])
def test_decoders_are_refused(family: str) -> None:
    with pytest.raises(CheckpointError, match="is_decoder: true"):
        describe(_bare(family, is_decoder=True))


def test_relative_positions_are_refused() -> None:
    with pytest.raises(CheckpointError, match="position_embedding_type: relative_key"):
        describe(_bare("Bert", position_embedding_type="relative_key"))


def test_unknown_models_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"quantize a Linear .*ForTokenClassification"):
        describe(nn.Linear(2, 2))


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_query_key_and_value_may_have_no_bias(family: str) -> None:
    model = small_model(family)
    for layer in describe(model).layers:
        for name in layer.query_key_value.linears:
            model.get_submodule(name).register_parameter("bias", None)
    integer = quantized(model).model
    for each in (model, integer):
        assert check_parity(each, build(each, {}), gate_batches(ROWS, 40)).problems() == []
    assert optimized_operators(build(integer, {}))["Attention"] == LAYERS


def test_one_of_the_three_may_have_no_bias() -> None:
    model = small_model("Bert", layers=1)
    key = describe(model).layers[0].query_key_value.linears[1]
    model.get_submodule(key).register_parameter("bias", None)
    integer = quantized(model).model
    for each in (model, integer):
        assert check_parity(each, build(each, {}), gate_batches(ROWS, 40)).problems() == []


def test_a_batch_may_lack_its_mask_and_hold_what_the_model_does_not_take() -> None:
    model = small_model("DistilBert", layers=1)
    batch = batch_of(4, 9)
    whole = quantize(model, [batch]).decisions
    del batch["attention_mask"]
    assert quantize(model, [{**batch, "labels": torch.zeros(4)}]).decisions == whole


def test_roberta_counts_positions_from_its_padding_id() -> None:
    """Padding amid a text leaves positions out: what a mask says makes no difference to them."""
    model = small_model("Roberta", WORDS)
    batch = batch_of(2, 12)
    batch["input_ids"][0, 3] = 1
    assert _close(_of_file(build(model, {}), batch), answers_of(model, batch), batch, WORDS)
    batch["input_ids"][0, 3] = 2
    other = _of_file(build(model, {}), batch)
    assert _close(other, answers_of(model, batch), batch, WORDS)


def test_narrow_embeddings_count_their_projection_as_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for family in ("Albert", "Electra"):
        onnx.save_model(build(small_model(family), {}), path)
        tables = (ROWS + 50 + 64 + 2) * NARROW + 2 * NARROW
        assert bytes_by_component(path).embeddings == 4 * (tables + NARROW * HIDDEN + HIDDEN)
    # RoBERTa's and ELECTRA's head is two Linears, BERT's one: its pooler is the encoder's.
    onnx.save_model(build(small_model("Roberta"), {}), path)
    assert bytes_by_component(path).head == 4 * (HIDDEN * HIDDEN + HIDDEN + HIDDEN * 3 + 3)


def test_wide_electra_has_no_projection() -> None:
    model = small_model("Electra", embedding_size=HIDDEN)
    assert describe(model).embedding.projection is None
    batch = batch_of(3, 8)
    assert _close(_of_file(build(model, {}), batch), answers_of(model, batch), batch, SEQUENCE)


def test_a_bare_model_may_lack_its_pooler(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model: Any = small_model("Bert", BARE, layers=1)
    model.pooler = None
    small = quantized(model)
    save_packed(small, tokenizer, tmp_path, max_length=LENGTH)
    batch = batch_of(2, 6)
    assert torch.equal(
        answers_of(load_packed(tmp_path).model, batch), answers_of(small.model, batch)
    )
