import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import quantkit
from quantkit import runtime
from quantkit.errors import CheckpointError, DependencyError
from quantkit.exporter import export
from quantkit.ptq import Quantized

TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja", "tidak enak " * 60, "enak"]


@pytest.fixture(scope="module")
def folder(
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    target = tmp_path_factory.mktemp("exported")
    export(quantized.model, tokenizer, target)
    return target


def test_it_answers_like_the_torch_model(
    folder: Path, quantized: Quantized, tokenizer: PreTrainedTokenizerBase
) -> None:
    session = quantkit.load(folder)
    for text, logits in zip(TEXTS, session.logits(TEXTS, batch_size=1), strict=True):
        batch = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            expected = quantized.model(**batch).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_an_answer_does_not_depend_on_its_neighbours(folder: Path) -> None:
    session = quantkit.load(folder)
    together, alone = session.logits(TEXTS, batch_size=5), session.logits(TEXTS, batch_size=1)
    np.testing.assert_allclose(together, alone, atol=2e-3)


def test_predictions_are_probabilities_in_order(folder: Path) -> None:
    session = quantkit.load(folder)
    answers = session.predict(TEXTS)
    for answer, logits in zip(answers, session.logits(TEXTS), strict=True):
        assert list(answer.scores) == ["positive", "neutral", "negative"]
        assert sum(answer.scores.values()) == pytest.approx(1.0)
        assert answer.label == session.labels[int(logits.argmax())]
        assert answer.score == max(answer.scores.values())
    assert session.predict([]) == []


def test_serving_imports_no_torch(folder: Path) -> None:
    program = (
        "import sys, json, quantkit\n"
        f"answer = quantkit.load({str(folder)!r}).predict(['enak sekali'])[0]\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets', 'onnx'} & set(sys.modules)\n"
        "print(json.dumps([answer.label, sorted(heavy)]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    label, heavy = json.loads(result.stdout)
    assert label in {"positive", "neutral", "negative"}
    assert heavy == []


def test_a_folder_without_onnx_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantkit export"):
        quantkit.load(tmp_path)


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "onnx" / "model_quantized.onnx"
    broken.parent.mkdir()
    broken.write_bytes((folder / "onnx" / "model_quantized.onnx").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model_quantized\.onnx cannot be opened"):
        quantkit.load(tmp_path)


def test_a_missing_provider_says_what_to_install(folder: Path) -> None:
    with pytest.raises(DependencyError, match=r"quantkit\[gpu\]"):
        quantkit.load(folder, device="cuda")


def _pretend_installed(*names: str) -> Callable[[str], object]:
    def distribution(name: str) -> object:
        if name in names:
            return object()
        raise metadata.PackageNotFoundError(name)

    return distribution


def test_two_onnxruntimes_over_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "distribution", _pretend_installed("onnxruntime", "onnxruntime-gpu")
    )
    with pytest.raises(DependencyError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        runtime.import_onnxruntime()


def test_no_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", _pretend_installed())
    monkeypatch.setattr(runtime, "find_spec", lambda _name: None)
    with pytest.raises(DependencyError, match=r"pip install 'quantkit\[cpu\]'"):
        runtime.import_onnxruntime()


def test_threads_follow_the_affinity() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from quantkit.runtime import available_threads; print(available_threads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2", "avx512_vnni"}, False), ({"avx2"}, True), (set(), True), ({"asimd"}, False)],
)
def test_the_exactness_switch_is_set_only_where_products_saturate(
    flags: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset(flags))
    options = runtime.session_options()
    if expected:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")
