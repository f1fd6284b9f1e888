"""Exported folders in optimum: `ORTModelFor...` and a transformers pipeline give the same labels.

Runs where optimum-onnx is installed, which pins transformers 4.57: `make test-optimum`.
"""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, pipeline

import quantkit
from quantkit.answers import Prediction, Vector
from tests.interop import FILES, TEXTS, folder_of_kind

optimum = pytest.importorskip("optimum.onnxruntime")

# Of optimum's and transformers' own making.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def texts_folder(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return folder_of_kind("sequence", tokenizer, tmp_path_factory.mktemp("optimum"))


@pytest.fixture(scope="module")
def words_folder(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return folder_of_kind("words", tokenizer, tmp_path_factory.mktemp("optimum"))


@pytest.mark.parametrize("file", FILES.values())
def test_a_pipeline_of_whole_texts(file: str, texts_folder: Path) -> None:
    model = optimum.ORTModelForSequenceClassification.from_pretrained(
        texts_folder, file_name=file, subfolder="onnx"
    )
    own = AutoTokenizer.from_pretrained(texts_folder)
    found = pipeline("text-classification", model=model, tokenizer=own)(TEXTS)
    answers = quantkit.load(texts_folder / "onnx" / file).predict(TEXTS, batch_size=1)
    for theirs, ours in zip(found, answers, strict=True):
        assert isinstance(ours, Prediction)
        assert theirs["label"] == ours.label
        assert theirs["score"] == pytest.approx(ours.score, abs=1e-2)


@pytest.mark.parametrize("file", FILES.values())
def test_a_pipeline_of_words(file: str, words_folder: Path) -> None:
    model = optimum.ORTModelForTokenClassification.from_pretrained(
        words_folder, file_name=file, subfolder="onnx"
    )
    own = AutoTokenizer.from_pretrained(words_folder)
    found = pipeline("token-classification", model=model, tokenizer=own, ignore_labels=[])(TEXTS)
    session = quantkit.load(words_folder / "onnx" / file)
    for text, theirs in zip(TEXTS, found, strict=True):
        ids = np.array([own(text)["input_ids"]])
        arrays = dict(
            input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids)
        )
        names = [session.labels[at] for at in session.run(arrays)[0].argmax(-1)]
        assert [each["entity"] for each in theirs] == names[1:-1]


@pytest.mark.parametrize("file", FILES.values())
def test_a_pipeline_of_vectors(
    file: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its vectors are of tokens, and the session's their mean."""
    folder = folder_of_kind("features", tokenizer, tmp_path)
    model = optimum.ORTModelForFeatureExtraction.from_pretrained(
        folder, file_name=file, subfolder="onnx"
    )
    own = AutoTokenizer.from_pretrained(folder)
    found = pipeline("feature-extraction", model=model, tokenizer=own)(TEXTS)
    answers = quantkit.load(folder / "onnx" / file).predict(TEXTS, batch_size=1)
    for (theirs,), ours in zip(found, answers, strict=True):
        assert isinstance(ours, Vector)
        np.testing.assert_allclose(np.mean(theirs, axis=0), ours.values, atol=1e-2)


def test_logits_of_padded_texts(texts_folder: Path) -> None:
    """Texts of several lengths in one batch."""
    model = optimum.ORTModelForSequenceClassification.from_pretrained(
        texts_folder, file_name="model_quantized.onnx", subfolder="onnx"
    )
    own = AutoTokenizer.from_pretrained(texts_folder)
    batch = own(TEXTS, padding=True, return_tensors="np")
    session = quantkit.load(texts_folder / "onnx" / "model_quantized.onnx")
    found = model(**batch).logits
    np.testing.assert_allclose(found, session.logits(TEXTS, batch_size=len(TEXTS)), atol=1e-2)
