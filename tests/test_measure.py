import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from quantkit.errors import MeasurementError
from quantkit.measure import environment, measure
from quantkit.runtime import load
from quantkit.tokenization import Inputs
from quantkit.worker import read_outputs, write_outputs
from tests.tiny_onnx import HEADS, write_folder

TEXTS = ["makanan enak", "pelayanan buruk sekali", "biasa saja"]


@pytest.fixture
def folders(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> dict[str, Path]:
    """Two models of one head that answer differently."""
    head = HEADS["classification"]
    return {
        name: write_folder(tmp_path / name, head, tokenizer, seed=seed)
        for seed, name in enumerate(("float", "int8"))
    }


def test_every_candidate_is_answered_and_timed(folders: dict[str, Path]) -> None:
    inputs = Inputs(TEXTS)
    results = measure(folders, inputs, shapes=[(1, 8), (4, 16)], rounds=3, repeats=5, threads=1)
    for name, folder in folders.items():
        found = results[name]
        assert isinstance(found.outputs, np.ndarray)
        np.testing.assert_array_equal(found.outputs, load(folder).logits(TEXTS), strict=True)
        assert [(x.batch, x.length, x.calls) for x in found.latency] == [(1, 8, 15), (4, 16, 15)]
        assert all(0.0 < x.p50_ms <= x.p90_ms for x in found.latency)
        assert found.open_seconds > 0
        assert found.peak_bytes > 0
        assert found.imports_bytes > 10e6  # numpy and onnxruntime are larger than that


@pytest.mark.parametrize("kind", ["words", "features", "regression"])
def test_outputs_of_other_kinds_come_back_whole(
    kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / kind, HEADS[kind], tokenizer, max_length=20)
    sentences = [text.split() for text in (*TEXTS, "enak " * 40)]
    inputs = Inputs(sentences, [["apa"]] * 4) if kind == "words" else Inputs(TEXTS, TEXTS[::-1])
    results = measure({"float": folder}, inputs, shapes=[(1, 4)], rounds=1, repeats=1)
    found, expected = results["float"].outputs, load(folder).outputs(inputs)
    assert type(found) is type(expected)
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row, other, strict=True)


def test_a_candidate_that_cannot_open_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    (tmp_path / "empty").mkdir()
    candidates = {"float": folders["float"], "broken": tmp_path / "empty"}
    with pytest.raises(MeasurementError, match=r"'broken' failed: .*holds no exported model"):
        measure(candidates, Inputs(TEXTS), shapes=[], rounds=0, repeats=0)


@pytest.mark.parametrize("counts", [(), (2, 0, 3), (0,)])
def test_outputs_of_words_survive_their_file(counts: tuple[int, ...], tmp_path: Path) -> None:
    rows = [np.full((count, 4), at, dtype=np.float32) for at, count in enumerate(counts)]
    write_outputs(tmp_path / "outputs.npz", rows)
    found = read_outputs(tmp_path / "outputs.npz")
    assert isinstance(found, list)
    for row, other in zip(found, rows, strict=True):
        np.testing.assert_array_equal(row, other, strict=True)


def test_the_environment_names_what_figures_depend_on() -> None:
    found = environment(threads=3)
    assert found["threads"] == 3
    assert {"onnxruntime", "numpy", "torch", "transformers"} <= found["packages"].keys()
    json.dumps(found)
