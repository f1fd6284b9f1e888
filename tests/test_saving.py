"""Files larger than a protobuf message: tensors in a second file. The limit is lowered here."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

import quantkit
from quantkit.exporter import export, saving
from quantkit.exporter.bert import build
from quantkit.exporter.inspect import bytes_by_component
from quantkit.inspection import inspect_file
from quantkit.onnx_file import file_bytes

TEXTS = ["makanan enak sekali", "pelayanan buruk"]


def test_a_large_model_is_written_in_two_files_and_answers_alike(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = export(model, tokenizer, tmp_path / "whole").path
    with monkeypatch.context() as lowered:
        lowered.setattr(saving, "LARGEST", 50_000)
        exported = export(model, tokenizer, tmp_path / "parts")
    path = exported.path
    assert exported.parity.problems() == []
    assert {each.name for each in path.parent.iterdir()} == {"model.onnx", "model.onnx_data"}
    assert path.stat().st_size < 50_000 < whole.stat().st_size
    parts, one = (quantkit.load(tmp_path / name).logits(TEXTS) for name in ("parts", "whole"))
    np.testing.assert_array_equal(parts, one)
    assert bytes_by_component(path).total == file_bytes(path)
    assert bytes_by_component(path).encoder == bytes_by_component(whole).encoder
    found = inspect_file(path)
    assert found.size == file_bytes(path)
    assert len(found.products) == len(inspect_file(whole).products)
    # A smaller model in its place needs no second file, and an old one would only mislead.
    export(model, tokenizer, tmp_path / "parts")
    assert {each.name for each in path.parent.iterdir()} == {"model.onnx"}


def test_the_checker_reads_large_models_too(
    model: BertForSequenceClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LARGEST", 50_000)
    proto = build(model, {})
    assert proto.graph.initializer[0].raw_data  # checking leaves the tensors in the message
    proto.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        saving.check_model(proto)
