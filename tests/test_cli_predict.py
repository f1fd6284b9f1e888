"""`quantkit predict`: texts, files and standard input, for each kind of answer."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

import quantkit
from tests.cli import (
    Line,
    checkpoint,
    feelings,
    invoke,
    quantized,
    succeed,
    write_table,
)

TEXTS = ["makanan itu enak dan bagus", "kamar itu kotor dan buruk", "harga itu biasa dan cukup"]
ANSWERS = ["positive", "negative", "neutral"]


@pytest.fixture(scope="module")
def model(line: Line) -> Path:
    return line.runs / "smsa" / "w8a8"


def _predict_file(model: Path, file: Path, content: bytes) -> list[Any]:
    file.write_bytes(content)
    printed = succeed("predict", "--file", file, "--model", model)
    return [json.loads(answer) for answer in printed.splitlines()]


def _through_stdin(model: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "quantkit", "predict", "--file", "-", "--model", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
        encoding="utf-8",
    )


def test_texts_are_answered_in_order(line: Line) -> None:
    """And by the newest model, where none is named."""
    printed = succeed("predict", *TEXTS, "--runs", line.runs)
    found = [answer.split("\t") for answer in printed.splitlines()]
    assert [(label, text) for label, _, text in found] == list(zip(ANSWERS, TEXTS, strict=True))
    assert all(1 / 3 < float(score) <= 1.0 for _, score, _ in found)


def test_json_holds_what_the_session_says(model: Path) -> None:
    printed = succeed("predict", *TEXTS, "--json", "--model", model)
    found = [json.loads(answer) for answer in printed.splitlines()]
    expected = quantkit.load(model).predict(TEXTS)
    assert found == [answer.to_json() for answer in expected]
    assert [answer["label"] for answer in found] == ANSWERS


@pytest.mark.parametrize(
    "content",
    [
        "{0}\n{1}\n{2}\n",
        "{0}\n{1}\n{2}",
        "\n{0}\n  \n{1}\n\n\n{2}\n\n",
        "\ufeff{0}\r\n{1}\r\n\r\n{2}\r\n",
        '{{"text": "{0}"}}\n{{"text": "{1}", "label": 3}}\n{{"text": "{2}", "text_pair": null}}\n',
        '\ufeff{{"text": "{0}"}}\r\n{1}\n\n{{"id": 7, "text": "{2}"}}',
    ],
    ids=["lines", "no-last-end", "empty-lines", "bom-and-windows", "json", "mixed"],
)
def test_a_file_is_answered_line_by_line(content: str, model: Path, tmp_path: Path) -> None:
    written = content.format(*TEXTS)
    answers = _predict_file(model, tmp_path / "rows", written.encode())
    assert [answer["label"] for answer in answers if answer] == ANSWERS
    # Answers stand beside their lines.
    assert [bool(answer) for answer in answers] == [bool(x.strip()) for x in written.splitlines()]


def test_a_file_without_texts_has_no_answers(model: Path, tmp_path: Path) -> None:
    assert _predict_file(model, tmp_path / "rows", b"\n \n\r\n") == [None, None, None]
    assert _predict_file(model, tmp_path / "rows", b"") == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'enak\n\n{"text": "enak"\n', ["rows:3:", "begins with a brace", '{"text": ...}']),
        (b'{"text": ' + b"9" * 5000 + b"}\n", ["rows:1:", "is read as JSON"]),
        (b'{"a":' * 100_000, ["rows:1:", "is read as JSON"]),
        (b'enak\n{"txet": "enak"}\n', ["Row 2 has no text; found txet"]),
        (b'{"text": 5}\n', ["Row 1, text is a int (5), not a text"]),
        (b"enak\n\xff\xfe\n", ["rows is not UTF-8", "Convert it first"]),
    ],
    ids=["broken", "long-number", "deep", "no-text", "number", "latin"],
)
def test_a_row_that_is_no_text_is_named(
    content: bytes, words: list[str], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows").write_bytes(content)
    outcome = invoke("predict", "--file", tmp_path / "rows", "--model", model)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_file_that_is_none_is_named(name: str, model: Path, tmp_path: Path) -> None:
    outcome = invoke("predict", "--file", tmp_path / name, "--model", model)
    assert outcome.code == 2
    assert str(tmp_path / name) in outcome.err


def test_very_long_texts_are_answered(model: Path, base: Path, tmp_path: Path) -> None:
    """A classifier reads as much as its limit allows, a word labeller all of it."""
    text = " ".join(["kamar itu kotor dan buruk"] * 2000)
    (answer,) = _predict_file(model, tmp_path / "rows", text.encode())
    assert answer["label"] == "negative"
    names = quantized(base, "nergrit").runs / "nergrit" / "w8a8"
    sentence = " ".join(["budi tinggal di kota bali"] * 2000)
    (words,) = succeed("predict", sentence, "--model", names).splitlines()
    assert len(json.loads(words)["labels"]) == 10_000


def test_words_have_labels_and_spans(base: Path, tmp_path: Path) -> None:
    model = quantized(base, "nergrit").runs / "nergrit" / "w8a8"
    rows = 'siti bekerja di kota jakarta\n{"tokens": ["andi", "tinggal", "di", "kota", "bali"]}\n'
    answers = _predict_file(model, tmp_path / "rows", rows.encode())
    assert [answer["labels"] for answer in answers] == [
        ["B-PERSON", "O", "O", "B-PLACE", "I-PLACE"]
    ] * 2
    assert [answer["spans"] for answer in answers] == [
        [
            {"type": "PERSON", "start": 0, "stop": 1, "text": who},
            {"type": "PLACE", "start": 3, "stop": 5, "text": f"kota {where}"},
        ]
        for who, where in (("siti", "jakarta"), ("andi", "bali"))
    ]


def test_aspects_have_a_label_each(base: Path) -> None:
    model = quantized(base, "casa").runs / "casa" / "w8a8"
    (printed,) = succeed("predict", "makanan itu enak", "--model", model).splitlines()
    aspects = json.loads(printed)["aspects"]
    assert list(aspects) == ["fuel", "machine", "others", "part", "price", "service"]
    for answer in aspects.values():
        assert list(answer["scores"]) == ["negative", "neutral", "positive"]
        assert sum(answer["scores"].values()) == pytest.approx(1.0)
        assert answer["score"] == max(answer["scores"].values())


def test_the_second_text_of_a_pair_is_read(base: Path, tmp_path: Path) -> None:
    """Rows with and without one may stand in one file."""
    model = quantized(base, "wrete").runs / "wrete" / "w8a8"
    pairs = [("kamar itu bagus", "kamar itu ramah"), ("kamar itu bagus", "harga itu ramah")]
    rows = [json.dumps({"text": one, "text_pair": other}) for one, other in pairs]
    rows.insert(1, "kamar itu bagus")
    content = "\n".join(rows).encode()
    found = [answer["scores"] for answer in _predict_file(model, tmp_path / "rows", content)]
    logits = quantkit.load(model).outputs(
        quantkit.tokenization.Inputs([one for one, _ in pairs], [other for _, other in pairs])
    )
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for scores, expected in zip((found[0], found[2]), shares, strict=True):
        assert isinstance(scores, dict)
        np.testing.assert_allclose(list(scores.values()), expected, atol=1e-5)
    assert found[0] != found[1] != found[2]


def test_rows_before_a_broken_one_are_answered(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text('enak\n{"text": "buruk"}\n{broken\nbagus\n', encoding="utf-8")
    outcome = invoke("predict", "--file", file, "--model", model)
    assert outcome.code == 2
    assert "rows:3:" in outcome.err
    assert len([json.loads(line)["label"] for line in outcome.out.splitlines()]) == 2


def test_a_model_without_a_head_gives_vectors(base: Path, line: Line, tmp_path: Path) -> None:
    bare = checkpoint(base, head="Model")
    texts = write_table(tmp_path / "texts", TEXTS[0], TEXTS[1:])
    said = succeed("ptq", "--checkpoint", bare, "--texts", texts, "--runs", tmp_path)
    cosine = re.search(r"Vectors of 3 texts: mean cosine with the float model's (0\.\d+)", said)
    assert cosine is not None
    assert 0.97 < float(cosine[1]) < 1.0
    model = tmp_path / bare.name / "w8a8"
    printed = succeed("predict", *TEXTS, "--model", model).splitlines()
    assert [len(json.loads(answer)["values"]) for answer in printed] == [32] * 3
    assert len(set(printed)) == 3
    refused = invoke("eval", model, "--task", "smsa", "--data", line.data)
    assert (refused.code, "answers features; smsa asks for" in refused.err) == (2, True)


def test_answers_come_while_rows_are_still_written(model: Path) -> None:
    texts = [text for text, _ in feelings()] + [text.upper() for text, _ in feelings()[:60]]
    with _through_stdin(model) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(f"{text}\n" for text in texts))
        process.stdin.flush()
        first = _read_line(process.stdout)
        process.stdin.close()
        rest = process.stdout.read().splitlines()
        assert process.wait() == 0
    found = [json.loads(answer)["label"] for answer in (first, *rest)]
    expected = quantkit.load(model).predict(texts)
    assert found == [answer.to_json()["label"] for answer in expected]


def _read_line(stream: IO[str], seconds: float = 60.0) -> str:
    """A line, or a failed test where none comes while the other end stays open."""
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    assert found, "no answer before the input ended"
    return found[0]


def test_stdin_is_read_as_a_file_is(model: Path) -> None:
    printed, _ = _through_stdin(model).communicate(f"\ufeff{TEXTS[0]}\r\n\r\n{TEXTS[1]}\n")
    first, empty, second = (json.loads(answer) for answer in printed.splitlines())
    assert [first["label"], empty, second["label"]] == [ANSWERS[0], None, ANSWERS[1]]
    process = _through_stdin(model)
    _, said = process.communicate(f"{TEXTS[0]}\n\n{{oh\n")
    assert process.returncode == 2
    assert "-:3: a line that begins with a brace" in said
    assert "Traceback" not in said
