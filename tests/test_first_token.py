"""Under a head that reads the first token alone, the last layer computes no other."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, describe, unroll
from quantkit.exporter.bert import build
from quantkit.exporter.blocks import BlockErrors
from quantkit.exporter.names import product_name
from quantkit.exporter.saving import open_model
from quantkit.onnx_file import Target
from quantkit.ptq import quantize
from quantkit.runtime import session_options
from tests.conftest import ROWS, batch_of
from tests.models import small_model

TEXTS, TOKENS = 3, 9
TARGETS: tuple[Target, ...] = ("cpu", "portable", "cuda")


def _values(plan: EncoderPlan, proto: onnx.ModelProto) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The norms and the output projections' products of a file, and its answers."""
    products = [product_name(layer.attention_output) for layer in plan.layers]
    norms = [name for layer in plan.layers for name in (layer.attention_norm, layer.output_norm)]
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in products + norms
    )
    session = open_model(proto, session_options(1))
    names = [each.name for each in session.get_outputs()]
    feeds = {name: _batch()[name].numpy() for name in plan.arguments}
    found = dict(zip(names, session.run(names, feeds), strict=True))
    return found, found.pop(plan.output)


def _batch() -> dict[str, torch.Tensor]:
    batch = batch_of(TEXTS, TOKENS, seed=4)
    batch["attention_mask"][1, 5:] = 0
    return batch


def _answers(model: PreTrainedModel, plan: EncoderPlan) -> np.ndarray:
    with torch.no_grad():
        output = model(**{name: _batch()[name] for name in plan.arguments}, return_dict=True)
    answers: np.ndarray = output[plan.output].numpy()
    return answers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", ["Bert", "Albert", "DistilBert", "Roberta"])
def test_behind_its_keys_and_values_the_last_layer_is_one_token_wide(
    family: str, target: Target
) -> None:
    model = small_model(family, layers=2)
    plan = describe(unroll(model))
    proto = build(model, {}, target, single=target == "cuda")
    found, answers = _values(plan, proto)
    np.testing.assert_allclose(answers, _answers(model, plan), rtol=1e-4, atol=1e-4)
    whole, last = plan.layers
    for name in (product_name(whole.attention_output), whole.attention_norm, whole.output_norm):
        assert found[name].shape[:2] == (TEXTS, TOKENS)
    for name in (product_name(last.attention_output), last.attention_norm, last.output_norm):
        assert found[name].shape[:2] == (TEXTS, 1)


def test_integers_too() -> None:
    model = quantize(small_model("Bert"), [batch_of(8, 12)], reachable_rows=ROWS).model
    plan = describe(model)
    found, answers = _values(plan, build(model, {}))
    np.testing.assert_allclose(answers, _answers(model, plan), atol=2e-3)
    assert found[plan.layers[0].output_norm].shape[1] == TOKENS
    assert found[plan.layers[1].output_norm].shape[1] == 1


@pytest.mark.parametrize("head", ["ForTokenClassification", "Model"])
def test_a_head_that_reads_all_tokens_gets_them(head: str) -> None:
    model = small_model("Bert", head)
    plan = describe(model)
    found, answers = _values(plan, build(model, {}))
    assert {values.shape[1] for values in found.values()} == {TOKENS}
    real = _batch()["attention_mask"].numpy().astype(bool)
    expected = _answers(model, plan)
    np.testing.assert_allclose(answers[real], expected[real], rtol=1e-4, atol=1e-4)


def test_the_gate_takes_no_value_of_another_shape() -> None:
    errors = BlockErrors()
    errors.floats(np.ones((2, 1, 4), np.float32), torch.ones(2, 5, 4))
    assert errors.relative_error == np.inf
