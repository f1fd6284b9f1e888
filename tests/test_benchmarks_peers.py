"""`benchmarks/peers.py`: its files, and the tools that the test environment has anyway."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import small_model

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import peers
from peers import Peer, Row, read_rows, write_answers, write_rows


def _row(ids: list[int], types: list[int] | None = None) -> Row:
    return Row(np.array(ids), None if types is None else np.array(types))


ROWS = [_row([2, 9, 3], [0, 0, 1]), _row([2, 17, 5, 11, 3], [0, 0, 0, 1, 1])]


def _answers(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("typed", [True, False])
def test_rows_come_back_as_they_were_written(typed: bool, tmp_path: Path) -> None:
    rows = ROWS if typed else [Row(row.ids) for row in ROWS]
    write_rows(tmp_path / "rows.npz", rows)
    found = read_rows(tmp_path / "rows.npz")
    for row, back in zip(rows, found, strict=True):
        assert row.feed().keys() == back.feed().keys()
        for name, values in row.feed().items():
            assert back.feed()[name].dtype == np.int64
            assert back.feed()[name].tolist() == values.tolist()
    assert [back.types is not None for back in found] == [typed, typed]


def test_a_row_without_types_has_type_0() -> None:
    assert {name: values.tolist() for name, values in _row([2, 9, 3]).feed().items()} == {
        "input_ids": [[2, 9, 3]],
        "attention_mask": [[1, 1, 1]],
        "token_type_ids": [[0, 0, 0]],
    }


@pytest.mark.parametrize(
    ("offsets", "types"),
    [([0, 2], 3), ([1, 3], 3), ([0, 2, 2, 3], 3), ([0], 3), ([0, 1, 3], 2)],
)
def test_rows_that_do_not_fit_are_refused(offsets: list[int], types: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, input_ids=[2, 9, 3], offsets=offsets, token_type_ids=[0] * types)
    with pytest.raises(ValueError, match="do not fit the 3 tokens"):
        read_rows(path)


@pytest.mark.parametrize("words", [True, False])
def test_answers_are_flat_with_the_rows_of_each_text(words: bool, tmp_path: Path) -> None:
    def answer(feed: peers.Feed) -> np.ndarray:
        ids = feed["input_ids"]
        return np.stack([ids, -ids], -1) if words else np.stack([ids.sum(1), -ids.sum(1)], -1)

    write_answers(tmp_path / "a.npz", ROWS, Peer(answer, 123, 4.5))
    found = _answers(tmp_path / "a.npz")
    assert found["logits"].dtype == np.float32
    tokens = [2, 9, 3, 2, 17, 5, 11, 3]
    assert found["logits"][:, 0].tolist() == (tokens if words else [14, 38])
    assert found["offsets"].tolist() == ([0, 3, 8] if words else [0, 1, 2])
    assert (int(found["bytes"]), float(found["seconds"])) == (123, 4.5)


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    peer = Peer(lambda feed: np.array([[1.0, np.nan]], np.float32), 1, 0.0)
    with pytest.raises(ValueError, match="2 of 4 logits are not finite"):
        write_answers(tmp_path / "a.npz", ROWS, peer)
    assert not list(tmp_path.iterdir())


def _options(folder: Path, method: str) -> list[str]:
    names = {"--checkpoint": "float", "--calibration": "rows.npz"}
    texts = [text for option, name in names.items() for text in (option, str(folder / name))]
    rows, outputs = [str(folder / "rows.npz")] * 2, [str(folder / f"{at}.npz") for at in "ab"]
    return ["--method", method, *texts, "--inputs", *rows, "--output", *outputs]


# The largest error by the logits' size: of float rounding, then of 8 bits.
@pytest.mark.parametrize(
    ("method", "head", "error"),
    [
        ("ort-float", "ForTokenClassification", 1e-5),
        ("ort-dynamic", "ForSequenceClassification", 0.2),
        ("ort-static-percentile", "ForTokenClassification", 0.5),
    ],
)
def test_a_tool_answers_as_the_model_does(
    method: str, head: str, error: float, tmp_path: Path
) -> None:
    model = small_model("Bert", head)
    model.save_pretrained(tmp_path / "float")
    write_rows(tmp_path / "rows.npz", ROWS)
    assert peers.main(_options(tmp_path, method)) == 0

    found, again = _answers(tmp_path / "a.npz"), _answers(tmp_path / "b.npz")
    assert found["logits"].tolist() == again["logits"].tolist()
    with torch.inference_mode():
        feeds = [{name: torch.from_numpy(v) for name, v in row.feed().items()} for row in ROWS]
        expected = torch.cat([model(**feed).logits.reshape(-1, 3) for feed in feeds]).numpy()
    assert found["logits"].shape == expected.shape
    difference = float(np.abs(found["logits"] - expected).max() / np.abs(expected).max())
    assert difference < error
    assert (difference > 1e-4) is (method != "ort-float")
    assert found["bytes"] > 0
    assert (float(found["seconds"]) > 0.0) is (method != "ort-float")


def test_a_tool_that_gives_up_is_an_exit_code_and_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model("Bert", "Model").save_pretrained(tmp_path / "float")
    write_rows(tmp_path / "rows.npz", ROWS)
    assert peers.main(_options(tmp_path, "ort-float")) == 1
    reason = capsys.readouterr().err.splitlines()[-1]
    assert reason.startswith("ort-float: ValueError: ")
    assert "holds a BertModel" in reason
    assert not (tmp_path / "a.npz").exists()


def test_every_input_needs_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        peers.main(_options(tmp_path, "ort-float")[:-1])
    assert "2 --inputs need as many --output" in capsys.readouterr().err
