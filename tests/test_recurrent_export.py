"""The recurrent baselines' exported files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from transformers import PreTrainedTokenizerBase

from quantkit.errors import ParityError
from quantkit.exporter.recurrent import build, check
from quantkit.recurrent_slot import Recurrent
from quantkit.runtime import load
from tests.small_recurrent import (
    LABELS,
    LIMIT,
    SLOTS,
    arrays_of,
    by_hand,
    every_slot,
    make_model,
    make_words,
    random_rows,
)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return make_words()


@every_slot
def test_the_file_answers_as_torch_does(slot: Recurrent, words: PreTrainedTokenizerBase) -> None:
    """At several batch sizes and widths; a batch may hold no token at all."""
    model = make_model(slot, words)
    batches = [
        arrays_of(random_rows(size, size), extra=extra, filler=filler)
        for size in (1, 3, 8)
        for extra, filler in ((0, 0), (1, 5), (30, 0))
    ]
    batches += [arrays_of([[]]), arrays_of([[], [4, 2], []]), arrays_of([[5] * LIMIT])]
    result = check(model, build(model, {}), batches)
    assert result.problems() == []
    assert (result.disagreements, result.rows) == (0, sum(len(b["input_ids"]) for b in batches))
    assert result.logit_difference <= result.logit_difference_allowed


def test_operators_inputs_and_initializers(words: PreTrainedTokenizerBase) -> None:
    model = make_model(SLOTS[4], words)
    proto = build(model, {"quantkit.target": "cpu"})
    assert [value.name for value in proto.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert {p.key: p.value for p in proto.metadata_props} == {"quantkit.target": "cpu"}
    assert [node.op_type for node in proto.graph.node].count("LSTM") == 3
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    kernel = model.get_parameter("recurrent.layers.1.1.kernel").detach().numpy().reshape(4, 5, 12)
    reordered = held["recurrent.layers.1.kernel"][1].reshape(4, 5, 12)
    assert np.array_equal(reordered, kernel[[0, 3, 1, 2]])  # input, output, forget, candidate
    assert held["recurrent.layers.1.bias"].shape == (2, 8 * 5)
    assert not held["recurrent.layers.1.bias"][:, 4 * 5 :].any()  # there is no second bias


def test_the_check_catches_one_wrong_number(words: PreTrainedTokenizerBase) -> None:
    model, batches = make_model(SLOTS[2], words), [arrays_of(random_rows(8, 1))]
    proto = build(model, {})
    for change in (1e-2, np.nan):
        broken = onnx.ModelProto()
        broken.CopyFrom(proto)
        for tensor in broken.graph.initializer:
            if tensor.name == "recurrent.layers.0.recurrent_kernel":
                values = numpy_helper.to_array(tensor).copy()
                values[0, 0, 0] += np.float32(change)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        with pytest.raises(ParityError, match=r"of 8 labels differ, and logits by up to"):
            check(model, broken, batches)


def test_the_check_catches_a_forgotten_mask(words: PreTrainedTokenizerBase) -> None:
    model = make_model(SLOTS[2], words)
    proto = build(model, {})
    for node in proto.graph.node:
        if node.op_type == "LSTM":
            node.input[4] = ""
    with pytest.raises(ParityError):
        check(model, proto, [arrays_of(random_rows(8, 1))])


def test_a_session_answers_texts(words: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = make_model(SLOTS[4], words)
    words.save_pretrained(tmp_path)
    (tmp_path / "onnx").mkdir()
    metadata = {"quantkit.labels": "\n".join(LABELS), "quantkit.max_length": str(LIMIT)}
    onnx.save_model(build(model, metadata), tmp_path / "onnx" / "model.onnx")
    texts = ["KATA03, kata09 kata01!", "belum pernah", "...", " ".join(["kata05"] * 20)]
    rows = words(texts, truncation=True, max_length=LIMIT)["input_ids"]
    assert [len(row) for row in rows] == [3, 2, 0, LIMIT]
    found = load(tmp_path).logits(texts)
    np.testing.assert_allclose(found, by_hand(SLOTS[4], model, rows), atol=1e-5)
