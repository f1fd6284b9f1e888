"""Portable files in OpenVINO: the same labels, sessions of it, and a run measured there."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase
from typer.testing import CliRunner

import quantkit
from quantkit.cli import app
from quantkit.errors import CheckpointError, DependencyError, RecipeError
from quantkit.exporter import export
from quantkit.exporter.bert import build
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, with_bits, with_changes, with_target
from quantkit.report import Report
from tests.cli import BENCH, Line, changes, finished, succeed
from tests.conftest import ROWS, batch_of
from tests.models import small_model

PLAIN = Recipe(name="test", task="none", model="none")
GROUPS = {"weights.group": 16, "embeddings.group": 16}
TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja", "enak"] * 3


@pytest.mark.parametrize("kind", ["float", "w8a8", "w8a8 asymmetric", "w4a8", "w4a16"])
def test_openvino_gives_the_same_labels(
    kind: str, model: BertForSequenceClassification, batches: list[dict[str, torch.Tensor]]
) -> None:
    torch_model: Any = model
    if kind != "float":
        bits = {"activations.bits": 16 if kind == "w4a16" else 8}
        changed = (GROUPS if "w4" in kind else {}) | bits
        recipe = with_changes(with_bits(PLAIN, int(kind[1])), changed)
        if "asymmetric" not in kind:
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


@pytest.fixture(scope="module")
def folder(
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The checkpoint that the cpu target has, too, exported for both."""
    folder = tmp_path_factory.mktemp("both")
    for target in ("cpu", "portable"):
        export(quantized.model, tokenizer, folder, target=target, recipe=quantized.recipe)
    return folder


def test_a_session_answers_as_onnxruntime_does(folder: Path) -> None:
    session = quantkit.load(folder, engine="openvino", threads=1)
    assert session.path == folder / "onnx" / "portable" / "model_quantized.onnx"
    other = quantkit.load(session.path)
    assert (session.max_length, session.head) == (other.max_length, other.head)
    np.testing.assert_allclose(session.logits(TEXTS), other.logits(TEXTS), atol=0.05)
    assert [each.label for each in session.predict(TEXTS)] == [
        each.label for each in other.predict(TEXTS)
    ]


@pytest.mark.parametrize("head", ["ForTokenClassification", "Model"])
def test_words_and_features(head: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    export(small_model("Bert", head), tokenizer, tmp_path, target="portable")
    found = quantkit.load(tmp_path, engine="openvino").predict(TEXTS)
    expected = quantkit.load(tmp_path).predict(TEXTS)
    for a, b in zip(found, expected, strict=True):
        if head == "Model":
            np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-4)
        else:
            assert a.labels == b.labels


def test_threads_may_share_a_session(folder: Path) -> None:
    session = quantkit.load(folder, engine="openvino", threads=2)
    alone = session.logits(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: session.logits(TEXTS), range(16)))
    for each in together:
        np.testing.assert_array_equal(each, alone)


def test_what_was_compiled_can_be_kept(folder: Path, tmp_path: Path) -> None:
    first = quantkit.load(folder, engine="openvino", cache=tmp_path).logits(TEXTS)
    assert list(tmp_path.iterdir())
    second = quantkit.load(folder, engine="openvino", cache=tmp_path).logits(TEXTS)
    np.testing.assert_array_equal(first, second)


def test_mistakes_are_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"exported for cpu.*--target portable"):
        quantkit.load(folder / "onnx" / "model_quantized.onnx", engine="openvino")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"cannot run .*--target portable"):
        quantkit.load(broken, engine="openvino")
    only = shutil.copytree(folder, tmp_path / "only")
    shutil.rmtree(only / "onnx" / "portable")
    with pytest.raises(CheckpointError, match=r"one for cpu only.*--target portable"):
        quantkit.load(only, engine="openvino")
    with pytest.raises(RecipeError, match="OpenVINO runs on the CPU"):
        quantkit.load(folder, engine="openvino", device="cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"pip install 'quantkit\[openvino\]'"):
        quantkit.load(folder, engine="openvino")


def test_predict_and_bench_take_the_engine(base: Path, tmp_path: Path) -> None:
    original: Line = finished(base)
    runs = shutil.copytree(original.runs, tmp_path / "runs")
    values = changes(BENCH, bench__rounds=2, bench__repeats=2)
    command = ("bench", "smsa", "--engine", "openvino", "--runs", runs, *values)
    succeed(*command)
    report = Report.load(runs / "smsa" / "report.json")
    assert [each.file for each in report.candidates] == ["float/onnx/portable/model.onnx"]
    (note,) = (each for each in report.notes if "OpenVINO runs portable ones" in each)
    assert f"quantkit export {runs / 'smsa' / 'w8a8'} --target portable" in note
    succeed("export", runs / "smsa" / "w8a8", "--target", "portable")
    succeed(*command)
    report = Report.load(runs / "smsa" / "report.json")
    assert [each.name for each in report.candidates] == ["float", "int8"]
    assert report.environment["packages"]["openvino"] == openvino.__version__.split("-")[0]
    texts = ["predict", TEXTS[0], "--json", "--model", str(runs / "smsa" / "w8a8")]
    answers = [
        CliRunner().invoke(app, [*texts, "--engine", engine]).stdout
        for engine in ("openvino", "onnxruntime")
    ]
    labels = [json.loads(answer)["label"] for answer in answers]
    assert labels[0] == labels[1]
