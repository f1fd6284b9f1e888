import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import quantkit
from quantkit import session as sessions
from quantkit.answers import Aspects, Labels, Prediction, Value, Vector, Words
from quantkit.errors import DataError
from quantkit.ptq import Quantized
from quantkit.runtime import Session, load
from quantkit.tokenization import Inputs, Window, tokenize
from tests.tiny_onnx import HEADS, table_of, write_folder

TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja", "tidak enak " * 60, "enak"]
WHOLE = [kind for kind in HEADS if kind not in ("words", "features")]  # kinds answered per text
LONG = ["makanan", "enak", "sekali", "tidak", "pelayanan", "buruk", "enaksekali", "biasa"] * 6

Open = Callable[..., Session]


@pytest.fixture
def opened(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Open:
    """A session of a model made by hand for a kind; options as of `write_folder`."""

    def open_kind(kind: str, **options: Any) -> Session:  # noqa: ANN401
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return load(write_folder(place, HEADS[kind], tokenizer, **options))

    return open_kind


def as_array(outputs: object) -> np.ndarray:
    assert isinstance(outputs, np.ndarray)
    return outputs


def as_list(outputs: object) -> list[np.ndarray]:
    assert isinstance(outputs, list)
    return outputs


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


@pytest.mark.parametrize("kind", HEADS)
def test_neighbours_and_padding_change_no_answer_of_any_kind(kind: str, opened: Open) -> None:
    session = opened(kind)
    rows = Inputs([text.split() for text in TEXTS] if kind == "words" else TEXTS)
    together, alone = session.outputs(rows, batch_size=5), session.outputs(rows, batch_size=1)
    for row, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-5)


@pytest.mark.parametrize("kind", [*WHOLE, "features"])
def test_outputs_of_texts_are_the_models(
    kind: str, opened: Open, tokenizer: PreTrainedTokenizerBase
) -> None:
    table = table_of(HEADS[kind], len(tokenizer))
    outputs = as_array(opened(kind).outputs(Inputs(TEXTS), batch_size=2))
    assert outputs.dtype == np.float32
    for text, row in zip(TEXTS, outputs, strict=True):
        ids = tokenizer(text, truncation=True, max_length=64).input_ids
        np.testing.assert_allclose(row, table[ids].mean(0), atol=1e-5)


def test_outputs_of_pairs_are_the_models(opened: Open, tokenizer: PreTrainedTokenizerBase) -> None:
    table = table_of(HEADS["classification"], len(tokenizer))
    second = [*reversed(TEXTS)]
    outputs = opened("classification").outputs(Inputs(TEXTS, second))
    for a, b, row in zip(TEXTS, second, outputs, strict=True):
        ids = tokenizer(a, b, truncation=True, max_length=64).input_ids
        np.testing.assert_allclose(row, table[ids].mean(0), atol=1e-5)


@pytest.mark.parametrize("question", [None, ["biasa", "saja"]])
def test_outputs_of_words_are_those_of_their_first_tokens(
    question: list[str] | None, opened: Open, tokenizer: PreTrainedTokenizerBase
) -> None:
    table = table_of(HEADS["words"], len(tokenizer))
    rows = [LONG, ["enak"], LONG[:9]]
    second = None if question is None else [question] * 3
    expected = [
        np.stack([table[tokenizer(word, add_special_tokens=False).input_ids[0]] for word in row])
        for row in rows
    ]
    whole = opened("words", max_length=512).outputs(Inputs(rows, second), batch_size=2)
    parts = opened("words", max_length=20).outputs(Inputs(rows, second), batch_size=2)
    for outputs in (as_list(whole), as_list(parts)):
        for row, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(row, wanted)


def test_windows_are_run_in_batches_of_similar_length(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened("words", max_length=20)
    shapes = []
    run = session.run

    def record(arrays: dict[str, np.ndarray]) -> np.ndarray:
        shapes.append(arrays["input_ids"].shape)
        return run(arrays)

    monkeypatch.setattr(session, "run", record)
    session.outputs(Inputs([LONG, ["enak"], LONG, ["buruk"]]), batch_size=2)
    assert shapes[0] == (2, 3)
    assert len(shapes) > 2
    assert all(rows == 2 and length <= 20 for rows, length in shapes[:-1])


def test_predictions_are_probabilities_in_order(folder: Path) -> None:
    session = quantkit.load(folder)
    answers = session.predict(TEXTS)
    for answer, logits in zip(answers, session.logits(TEXTS), strict=True):
        assert isinstance(answer, Prediction)
        assert list(answer.scores) == ["positive", "neutral", "negative"]
        assert sum(answer.scores.values()) == pytest.approx(1.0)
        assert answer.label == session.labels[int(logits.argmax())]
        assert answer.score == max(answer.scores.values())
    assert session.predict([]) == []


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("classification", Prediction),
        ("aspects", Aspects),
        ("multilabel", Labels),
        ("regression", Value),
        ("words", Words),
        ("features", Vector),
    ],
)
def test_every_kind_answers_in_its_own_class(kind: str, answer: type, opened: Open) -> None:
    session = opened(kind)
    assert session.head == HEADS[kind]
    answers = session.predict([*TEXTS, ""])  # an empty text is answered too
    assert len(answers) == 6
    assert all(isinstance(found, answer) for found in answers)
    assert session.predict([]) == []


def test_words_are_read_from_strings_and_from_lists(opened: Open) -> None:
    session = opened("words")
    text, words = session.predict(["makanan  enak\tsekali", ["makanan", "enak", "sekali"]])
    assert text == words
    assert isinstance(text, Words)
    assert text.words == ("makanan", "enak", "sekali")
    assert len(text.labels) == len(text.scores) == 3
    assert session.predict([""]) == [Words((), (), (), ())]
    assert session.predict([[], ["enak"]])[1] == session.predict(["enak"])[0]


def test_a_passage_is_answered_and_not_its_question(opened: Open) -> None:
    session = opened("words")
    alone = session.predict([LONG[:5]])
    assert session.predict([LONG[:5]], ["siapa yang enak"]) == alone
    assert session.predict([LONG[:5]], [["siapa", "yang", "enak"]]) == alone
    assert session.predict([LONG[:5]], [""]) == alone


def test_threads_do_not_set_the_limits_of_one_tokenizer_at_once(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened("words", max_length=20)
    expected = session.predict([LONG])
    tokenizing = 0
    together = []

    def slow(*args: Any, **options: Any) -> Iterator[Window]:  # noqa: ANN401
        nonlocal tokenizing
        tokenizing += 1
        together.append(tokenizing)
        time.sleep(0.02)
        yield from tokenize(*args, **options)
        tokenizing -= 1

    monkeypatch.setattr(sessions, "tokenize", slow)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(session.predict, [[LONG]] * 4))
    assert found == [expected] * 4
    assert together == [1] * 4


def test_logits_are_of_whole_texts(opened: Open) -> None:
    with pytest.raises(DataError, match="answers each word"):
        opened("words").logits(["enak"])


def test_a_stream_answers_in_order_and_reads_no_further_than_it_must(opened: Open) -> None:
    session = opened("classification")
    taken = 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal taken
        for at in range(100):
            taken += 1
            yield {"text": TEXTS[at % 5], "id": str(at)}

    stream = session.stream(rows(), chunk=4)
    assert taken == 0
    found = [next(stream) for _ in range(4)]
    assert taken == 4
    found.append(next(stream))
    assert taken == 8
    found += stream
    assert taken == 100
    expected = [answer.to_json() for answer in session.predict(TEXTS)] * 20
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert json.loads(json.dumps(found)) == found


def test_a_stream_mixes_texts_and_pairs(opened: Open) -> None:
    session = opened("regression")
    rows: list[Any] = [
        "enak",
        {"text": "enak", "text_pair": "buruk"},
        {"text": "buruk", "text_pair": None},
        {"text": "biasa", "text_pair": "saja"},
    ]
    expected = [
        session.predict(["enak"])[0],
        session.predict(["enak"], ["buruk"])[0],
        session.predict(["buruk"])[0],
        session.predict(["biasa"], ["saja"])[0],
    ]
    found = list(session.stream(rows))
    assert [row["value"] for row in found] == pytest.approx(
        [answer.to_json()["value"] for answer in expected], abs=1e-5
    )


def test_a_stream_of_words_takes_tokens_and_questions(opened: Open) -> None:
    session = opened("words")
    rows: list[Any] = [
        {"tokens": ["makanan", "enak"], "question": ["apa", "yang", "enak"]},
        {"tokens": ["makanan", "enak"]},
        {"text": "makanan enak", "question": "apa"},
        "makanan enak",
    ]
    found = list(session.stream(rows, chunk=3))
    assert found == [session.predict(["makanan enak"])[0].to_json()] * 4


def test_a_row_that_is_no_text_is_named_wherever_it_stands(opened: Open) -> None:
    session = opened("classification")
    with pytest.raises(DataError, match="Row 6 is a int"):
        list(session.stream([*TEXTS, 7], chunk=4))  # type: ignore[list-item]
    with pytest.raises(DataError, match="Row 2 is a float"):
        session.predict(["enak", 3.5])  # type: ignore[list-item]
    with pytest.raises(DataError, match="Row 1 is a NoneType"):
        session.outputs(Inputs([None]))  # type: ignore[list-item]
    with pytest.raises(DataError, match="found one str"):
        next(session.stream("enak"))


def test_serving_imports_no_torch(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    folders = [str(write_folder(tmp_path / kind, HEADS[kind], tokenizer)) for kind in HEADS]
    program = (
        "import sys, json, quantkit\n"
        f"for folder in {folders!r}: print(quantkit.load(folder).predict(['enak sekali'])[0])\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets', 'onnx', 'sklearn',"
        " 'pydantic'} & set(sys.modules)\n"
        "print(json.dumps(sorted(heavy)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.splitlines()[-1] == "[]"
