"""The cache of optimized graphs: the same answers, and no graph that could be wrong."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

import quantkit
from quantkit import graph_cache
from quantkit.exporter import export
from quantkit.graph_cache import cached_graph
from quantkit.ptq import quantize
from tests.conftest import batch_of
from tests.interop import four_bits

TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja"]


def test_the_second_session_reads_the_cache_and_answers_the_same(
    folder: Path, tmp_path: Path
) -> None:
    cache, path = tmp_path / "new" / "cache", folder / "onnx" / "model_quantized.onnx"
    plain = quantkit.load(folder)
    first = quantkit.load(folder, cache=cache).logits(TEXTS)
    (graph,) = cache.iterdir()
    assert cached_graph(path, cache) == graph
    written = graph.stat().st_mtime_ns
    second = quantkit.load(folder, cache=cache)
    assert (second.labels, second.max_length) == (plain.labels, plain.max_length)
    np.testing.assert_array_equal(first, plain.logits(TEXTS))
    np.testing.assert_array_equal(second.logits(TEXTS), first)
    assert [graph.stat().st_mtime_ns] == [each.stat().st_mtime_ns for each in cache.iterdir()]
    assert written == graph.stat().st_mtime_ns


def test_a_damaged_graph_is_made_anew(folder: Path, tmp_path: Path) -> None:
    expected = quantkit.load(folder, cache=tmp_path).logits(TEXTS)
    (graph,) = tmp_path.iterdir()
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1  # a weight: the file would open, and answer something else
    graph.write_bytes(data)
    assert cached_graph(folder / "onnx" / "model_quantized.onnx", tmp_path) is None
    np.testing.assert_array_equal(quantkit.load(folder, cache=tmp_path).logits(TEXTS), expected)
    (again,) = tmp_path.iterdir()
    assert again.read_bytes() != bytes(data)


@pytest.mark.parametrize("what", ["processor", "file"])
def test_another_file_or_processor_has_a_graph_of_its_own(
    what: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "onnx" / "model_quantized.onnx"
    quantkit.load(path, cache=tmp_path)
    if what == "processor":
        monkeypatch.setattr(graph_cache, "cpu_flags", lambda: frozenset({"avx2"}))
    else:
        path = tmp_path / "other" / "onnx" / "model_quantized.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes((folder / "onnx" / "model_quantized.onnx").read_bytes() + b"\x10\x00")
    assert cached_graph(path, tmp_path) is None


def test_a_4_bit_file_warns_that_its_graph_is_larger(
    tokenizer: PreTrainedTokenizerBase,
    model: BertForSequenceClassification,
    tmp_path: Path,
) -> None:
    recipe = four_bits()
    batches: list[dict[str, torch.Tensor]] = [batch_of(4, 16)]
    small = quantize(model, batches, recipe=recipe).model
    export(small, tokenizer, tmp_path / "model", recipe=recipe)
    with pytest.warns(UserWarning, match="4-bit weights lie there in 8 bits"):
        first = quantkit.load(tmp_path / "model", cache=tmp_path / "cache").logits(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = quantkit.load(tmp_path / "model", cache=tmp_path / "cache").logits(TEXTS)
    np.testing.assert_array_equal(first, second)
