"""ALBERT calls one layer several times: one set of weights, and ranges of each call."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from onnx import numpy_helper
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedTokenizerBase

from quantkit.encoder import describe, rolled_config, unroll
from quantkit.errors import CheckpointError
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import check_parity
from quantkit.modules import QuantLinear
from quantkit.packed import load_packed, save_packed
from tests.conftest import ROWS, batch_of
from tests.models import LENGTH, answers_of, quantized, small_config, small_model

LAYERS = 2


def _stored_bytes(file: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in file.graph.initializer)


def test_an_albert_file_holds_its_layer_once() -> None:
    once, often = small_model("Albert", layers=1), small_model("Albert", layers=12)
    files = build(once, {}), build(often, {})
    assert _stored_bytes(files[0]) == _stored_bytes(files[1])
    model, calls = quantized(often).model, 11
    files = build(quantized(once).model, {}), build(model, {})
    # Each further call brings a float32 scale and a zero point for each of its four inputs.
    assert _stored_bytes(files[1]) - _stored_bytes(files[0]) == calls * 4 * (4 + 1)
    assert files[1].ByteSize() - files[0].ByteSize() < calls * 8_000  # nodes and their names
    modules: list[Any] = [
        model.get_submodule(layer.output.linears[0]) for layer in describe(model).layers
    ]
    assert len({float(module.input_quantizer.scale) for module in modules}) == calls + 1
    parity = check_parity(model, build(model, {}), gate_batches(ROWS, 40))
    assert parity.problems() == []


def test_albert_shares_weights_between_calls_and_not_ranges() -> None:
    model = small_model("Albert", layers=4, num_hidden_groups=2)
    unrolled = unroll(model)
    batch = batch_of(3, 9)
    assert torch.equal(answers_of(model, batch), answers_of(unrolled, batch))
    assert {id(p) for p in model.parameters()} == {id(p) for p in unrolled.parameters()}
    assert model.config.num_hidden_groups == 2
    assert [layer.first for layer in describe(model).layers] == [0, 0, 2, 2]
    result = quantized(model)
    groups: Any = result.model.get_submodule("albert.encoder.albert_layer_groups")
    first, second, third, _ = (group.albert_layers[0].ffn for group in groups)
    for part in ("codes", "scale", "bias"):
        assert getattr(first, part) is getattr(second, part)
        assert getattr(first, part) is not getattr(third, part)
    assert first.input.multiplier is second.input.multiplier
    assert first.input.scale != second.input.scale
    assert rolled_config(result.model)["num_hidden_groups"] == 2


def test_a_packed_albert_stores_its_layer_once(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_packed(quantized(small_model("Albert")), tokenizer, tmp_path, max_length=LENGTH)
    with safe_open(tmp_path / "quantkit.safetensors", framework="pt") as file:
        names = set(file.keys())
    layer = "albert.encoder.albert_layer_groups.{}.albert_layers.0"
    assert f"{layer.format(0)}.ffn.codes" in names
    second = {name for name in names if name.startswith(layer.format(1))}
    assert all(name.endswith((".input.scale", ".input.zero_point")) for name in second)
    assert len(second) == 2 * 4
    assert load_packed(tmp_path).model.config.num_hidden_groups == LAYERS


def test_skipping_one_call_keeps_all_calls_in_float() -> None:
    model = small_model("Albert")
    calls = quantized(model, skip=("classifier", "*groups.1*.ffn_output")).model
    for layer in describe(calls).layers:
        assert type(calls.get_submodule(layer.output.linears[0])) is nn.Linear
        assert type(calls.get_submodule(layer.intermediate.linears[0])) is QuantLinear


def test_other_albert_groups_are_refused() -> None:
    with pytest.raises(CheckpointError, match="inner_group_num: 2"):
        describe(transformers.AlbertModel(small_config("Albert", inner_group_num=2)))
