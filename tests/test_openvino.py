"""Portable files in another runtime; where OpenVINO is installed."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import BertForSequenceClassification

from quantkit.exporter.bert import build
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, with_bits, with_changes, with_target
from tests.conftest import ROWS, batch_of

openvino: Any = pytest.importorskip("openvino")

PLAIN = Recipe(name="test", task="none", model="none")
GROUPS = {"weights.group": 16, "embeddings.group": 16}


@pytest.mark.parametrize("kind", ["float", "w8a8", "w4a8", "w4a16"])
def test_openvino_gives_the_same_labels(
    kind: str, model: BertForSequenceClassification, batches: list[dict[str, torch.Tensor]]
) -> None:
    torch_model: Any = model
    if kind != "float":
        changes = (GROUPS if "w4" in kind else {}) | {"activations.bits": int(kind[3:])}
        recipe = with_changes(with_bits(PLAIN, int(kind[1])), changes)
        recipe = with_target(recipe, "portable")
        torch_model = quantize(model, batches, recipe=recipe, reachable_rows=ROWS).model
    proto: onnx.ModelProto = build(torch_model, {}, "portable")
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(proto.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    batch = batch_of(24, 16, seed=4)
    batch["attention_mask"][::2, 9:] = 0
    with torch.no_grad():
        expected = torch_model(**batch).logits.numpy()
    feeds = {value.any_name: batch[value.any_name].numpy() for value in compiled.inputs}
    found = compiled(feeds)[0]
    # Clear answers: OpenVINO rounds inputs of 4-bit products its own way.
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 0.3
    assert clear.sum() > 8
    np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])
    if "4" not in kind:
        np.testing.assert_allclose(found, expected, atol=0.05)
