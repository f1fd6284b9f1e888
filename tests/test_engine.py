"""The torch engine against the models that it reads.

Without Triton the kernels' plain torch functions run; `make test-kernels` runs the same tests
through Triton's interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import quantkit
from quantkit.engine import TorchBackend, open_session
from quantkit.engine.batch import Shape, pack, rounded
from quantkit.engine.checkpoint import read_checkpoint
from quantkit.errors import CheckpointError, DependencyError, RecipeError
from quantkit.packed import save_packed
from quantkit.ptq import Quantized
from quantkit.tokenization import Inputs
from tests.conftest import ROWS
from tests.interpreter import correct_bfloat16
from tests.models import FAMILIES, HEADS, answers_of, quantized, small_model

W4 = {"weights": {"bits": 4, "per": "group", "group": 32}}
TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja", "tidak enak " * 60, "enak"]
CPU = torch.device("cpu")


def arrays_of(lengths: list[int], seed: int = 0, padding: int = 0) -> dict[str, np.ndarray]:
    """Texts of different lengths, padded on the right."""
    generator = np.random.default_rng(seed)
    shape = len(lengths), max(lengths)
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, generator.integers(5, ROWS, shape), padding)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def folder_of(made: Quantized | PreTrainedModel, tokenizer: Any, folder: Path) -> Path:  # noqa: ANN401
    folder.mkdir()
    if isinstance(made, Quantized):
        save_packed(made, tokenizer, folder, max_length=60)
    else:
        made.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def backend_of(folder: Path, precision: Any = "packed") -> TorchBackend:  # noqa: ANN401
    return TorchBackend(read_checkpoint(folder, CPU), precision, CPU)


def expected(model: PreTrainedModel, arrays: dict[str, np.ndarray]) -> np.ndarray:
    answers = answers_of(model, {name: torch.from_numpy(a) for name, a in arrays.items()}).numpy()
    mask = arrays["attention_mask"][..., None]
    return np.asarray(answers if answers.ndim == 2 else answers * mask)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_models_of_every_family_answer_as_in_torch(
    family: str, head: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = quantized(small_model(family, head))
    padding = int(made.model.config.pad_token_id or 0)
    arrays = arrays_of([3, 17, 9, 1], padding=padding)
    found = backend_of(folder_of(made, tokenizer, tmp_path / "packed")).run(arrays)
    wanted = expected(made.model, arrays)
    # A code that flips moves an answer by far more than float32's rounding does.
    np.testing.assert_allclose(found, wanted, atol=0.02 * float(np.abs(wanted).max()))
    assert np.median(np.abs(found - wanted)) <= 1e-5 * float(np.abs(wanted).max())


@pytest.mark.parametrize(
    "slots",
    [
        {
            "weights": {"bits": 4, "per": "group", "group": 32},
            "embeddings": {"bits": 4, "per": "row"},
        },
        {"weights": {"bits": 4, "per": "channel"}},
        {"activations": {"per": "token"}},
        {"activations": {"bits": 16}},
        {"activations": {"bits": 4}, "weights": {"bits": 4, "per": "channel"}},
        {"activations": {"symmetric": True}, "skip": ["*.intermediate.dense"]},
    ],
    ids=["w4a8", "w4a8-channel", "token", "weight-only", "w4a4", "mixed"],
)
def test_every_kind_of_quantization(
    slots: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small_model("Bert", hidden_size=64, intermediate_size=128)
    made = quantized(model, **slots)
    arrays = arrays_of([3, 17, 9, 1])
    found = backend_of(folder_of(made, tokenizer, tmp_path / "packed")).run(arrays)
    wanted = expected(made.model, arrays)
    np.testing.assert_allclose(found, wanted, atol=0.02 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("family", ["Bert", "Albert", "Roberta"])
def test_float_models_answer_as_in_torch(
    family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small_model(family)
    folder = folder_of(model, tokenizer, tmp_path / "float")
    arrays = arrays_of([3, 17, 9, 1], padding=int(model.config.pad_token_id or 0))
    wanted = expected(model, arrays)
    np.testing.assert_allclose(backend_of(folder, "float32").run(arrays), wanted, atol=2e-5)
    others: tuple[tuple[str, float], ...] = (("float8", 0.25),)
    if os.environ.get("TRITON_INTERPRET") == "1":
        correct_bfloat16()
        others = ()  # its float8 is wrong, too: see docs/architecture.md
    for precision, tolerance in (("float16", 0.01), ("bfloat16", 0.05), *others):
        found = backend_of(folder, precision).run(arrays)
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max(), precision
        assert not np.array_equal(found, wanted)


def test_a_packed_model_in_floats_is_its_dequantized_self(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = quantized(small_model("Bert"), activations={"bits": 16}, smoothing={"name": "none"})
    folder, arrays = folder_of(made, tokenizer, tmp_path / "packed"), arrays_of([9, 4])
    found = backend_of(folder, "float32").run(arrays)
    np.testing.assert_allclose(found, expected(made.model, arrays), atol=1e-5)
    # Smoothed weights are for smoothed inputs: in floats the smoothing is undone.
    smoothed = quantized(small_model("Bert"))
    folder = folder_of(smoothed, tokenizer, tmp_path / "smoothed")
    wanted = expected(small_model("Bert"), arrays)
    found = backend_of(folder, "float32").run(arrays)
    assert np.abs(found - wanted).max() <= 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["packed", "float32"])
def test_what_sizes_are_rounded_up_by_changes_no_answer(
    precision: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = quantized(small_model("Bert"))
    backend = backend_of(folder_of(made, tokenizer, tmp_path / "packed"), precision)
    arrays = arrays_of([3, 17, 9])
    exact, more = (pack(arrays, None, exact=value) for value in (True, False))
    assert more.shape == Shape(32, 4, 64)
    np.testing.assert_allclose(
        backend.encoder(more)[:3].numpy(), backend.encoder(exact).numpy(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (Shape(1, 1, 1), Shape(16, 1, 64)),
        (Shape(100, 3, 65), Shape(112, 4, 128)),
        (Shape(1025, 32, 64), Shape(1152, 32, 64)),
        (Shape(4096, 33, 384), Shape(4096, 64, 384)),
    ],
)
def test_sizes_are_rounded_up(shape: Shape, wanted: Shape) -> None:
    assert rounded(shape) == wanted
    assert rounded(wanted) == wanted


def test_batches_are_packed_by_hand() -> None:
    arrays = {
        "input_ids": np.array([[7, 8, 1], [9, 1, 1]]),
        "attention_mask": np.array([[1, 1, 0], [1, 0, 0]]),
        "token_type_ids": np.array([[0, 2, 0], [3, 0, 0]]),
    }
    found = pack(arrays, None, exact=True)
    assert found.ids.tolist() == [7, 8, 9]
    assert found.types.tolist() == [0, 2, 3]
    assert found.positions.tolist() == [0, 1, 0]
    assert found.starts.tolist() == [0, 2, 3]
    assert pack(arrays, 1, exact=True).positions.tolist() == [2, 3, 2]  # RoBERTa's, padding id 1
    more = pack(arrays, None, exact=False)
    assert more.ids.tolist() == [7, 8, 9, *[0] * 13]
    assert more.starts.tolist() == [0, 2, 3]


def test_a_session_answers_like_the_packed_model(
    quantized: Quantized, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = folder_of(quantized, tokenizer, tmp_path / "packed")
    session = quantkit.load(folder, engine="torch")
    assert (session.labels, session.max_length) == (("positive", "neutral", "negative"), 60)
    logits = session.logits(TEXTS, batch_size=4)
    for text, found in zip(TEXTS, logits, strict=True):
        batch = tokenizer(text, truncation=True, max_length=60, return_tensors="pt")
        with torch.no_grad():
            wanted = quantized.model(**batch).logits[0].numpy()
        np.testing.assert_allclose(found, wanted, atol=0.01)
    labels = [answer.to_json()["label"] for answer in session.predict(TEXTS)]
    assert labels == [session.labels[at] for at in logits.argmax(-1)]


@pytest.mark.parametrize("head", ["ForTokenClassification", "Model"])
def test_sessions_of_words_and_features(
    head: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = folder_of(small_model("Bert", head), tokenizer, tmp_path / "float")
    session = quantkit.load(folder, engine="torch")
    words = head == "ForTokenClassification"
    together = session.outputs(Inputs([t.split() for t in TEXTS] if words else TEXTS))
    alone = session.outputs(Inputs([TEXTS[1].split()] if words else [TEXTS[1]]))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_mistakes_are_told(
    quantized: Quantized, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint"):
        open_session(tmp_path, "cpu")
    folder = folder_of(small_model("Bert"), tokenizer, tmp_path / "float")
    with pytest.raises(CheckpointError, match=r"is a float model"):
        open_session(folder, "cpu", "packed")
    with pytest.raises(CheckpointError, match=r"precision is 'int3'"):
        open_session(folder, "cpu", "int3")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"engine is 'tensorrt'"):
        quantkit.load(folder, engine="tensorrt")
    if not torch.cuda.is_available():
        with pytest.raises(DependencyError, match=r"no CUDA GPU"):
            quantkit.load(folder, engine="torch", device="cuda")
    packed = folder_of(quantized, tokenizer, tmp_path / "packed")
    metadata = packed / "quantkit.json"
    metadata.write_text(metadata.read_text("utf-8").replace('"format": 2', '"format": 99'), "utf-8")
    with pytest.raises(CheckpointError, match=r"has format 99"):
        open_session(packed, "cpu")


def test_the_engine_imports_no_training_and_no_onnx() -> None:
    program = "import quantkit.engine, sys; print(' '.join(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"datasets", "evaluate", "pydantic", "onnxruntime", "onnx"}.isdisjoint(found)
