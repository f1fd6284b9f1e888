"""Exported folders in JavaScript: transformers.js and onnxruntime-node give the same labels.

Runs where node and the packages of tests/javascript are installed: `make test-javascript`.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import quantkit
from quantkit.answers import Prediction
from tests.interop import FILES, KINDS, TEXTS, folder_of_kind

HERE = Path(__file__).parent / "javascript"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (HERE / "node_modules" / "@huggingface").is_dir(),
    reason="node, or the packages of tests/javascript, are not installed",
)


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    return request.param, folder_of_kind(
        request.param, tokenizer, tmp_path_factory.mktemp("javascript") / request.param
    )


def _javascript(folder: Path, dtype: str, task: str) -> dict[str, Any]:
    request = dict(
        folder=str(folder), file=f"onnx/{FILES[dtype]}", dtype=dtype, task=task, texts=TEXTS
    )
    assert NODE is not None
    done = subprocess.run(
        [NODE, "answers.mjs"],
        input=json.dumps(request),
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reply: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reply


@pytest.mark.parametrize("dtype", FILES)
def test_the_same_answers(
    dtype: str, exported: tuple[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    kind, folder = exported
    task = "text-classification" if kind == "sequence" else "token-classification"
    reply = _javascript(folder, dtype, task)
    session = quantkit.load(folder / "onnx" / FILES[dtype])
    assert reply["tokens"] == [tokenizer(text)["input_ids"] for text in TEXTS]
    if kind == "sequence":
        _check_sequence(reply, session)
    else:
        _check_words(reply, session)


def _check_sequence(reply: dict[str, Any], session: quantkit.Session) -> None:
    answers = session.predict(TEXTS, batch_size=1)
    np.testing.assert_allclose(reply["logits"], session.logits(TEXTS, batch_size=1), atol=1e-2)
    for (found,), answer, logits in zip(reply["pipeline"], answers, reply["logits"], strict=True):
        assert isinstance(answer, Prediction)
        assert found["label"] == answer.label == session.labels[int(np.argmax(logits))]
        assert found["score"] == pytest.approx(answer.score, abs=1e-2)


def _check_words(reply: dict[str, Any], session: quantkit.Session) -> None:
    """Each token's label; transformers.js leaves out those of O."""
    for text, found, logits in zip(TEXTS, reply["pipeline"], reply["logits"], strict=True):
        ids = np.array([reply["tokens"][TEXTS.index(text)]])
        arrays = dict(
            input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids)
        )
        expected = session.run(arrays)[0]
        np.testing.assert_allclose(np.reshape(logits, expected.shape), expected, atol=1e-2)
        names = [session.labels[at] for at in expected.argmax(-1)]
        # The first and the last are special tokens, which the pipeline does not report.
        inner = {at: name for at, name in enumerate(names[1:-1], start=1) if name != "O"}
        assert {each["index"]: each["entity"] for each in found} == inner
