"""Scoring a folder on its own task's rows, and on those of another task."""

import shutil
from pathlib import Path

import pytest

import quantkit
from quantkit.errors import DataError
from quantkit.evaluation import evaluate_folder
from tests.cli import Line, feelings, invoke, quantized, succeed, write_table


@pytest.fixture(scope="module")
def model(line: Line) -> Path:
    return line.runs / "smsa" / "w8a8"


@pytest.fixture
def nusax(tmp_path: Path) -> Path:
    """Six test texts: two of SmSA's train split, written otherwise, and a wrong label."""
    train, validation = feelings()[::2], feelings()[1::4]
    new = [next(row for row in validation if row[1] == label) for label in LABELS]
    seen = [(train[0][0].upper() + "!", train[0][1]), (f"  {train[9][0]} ", train[9][1])]
    wrong = (validation[-1][0], "neutral" if validation[-1][1] != "neutral" else "positive")
    rows = [f"{at},{text},{label}" for at, (text, label) in enumerate([*new, *seen, wrong])]
    for part in ("train", "valid", "test"):
        (tmp_path / "indonesian").mkdir(exist_ok=True)
        write_table(tmp_path / "indonesian" / f"{part}.csv", "id,text,label", rows)
    return tmp_path


LABELS = ("negative", "neutral", "positive")  # NusaX's order; SmSA's is the opposite


def test_a_run_tells_task_and_data(model: Path) -> None:
    found = evaluate_folder(model, "", None, "test")
    assert (found.rows, found.notes) == (60, ())
    assert [each.name for each in found.classes] == ["positive", "neutral", "negative"]
    assert sum(each.support for each in found.classes) == 60
    assert found == evaluate_folder(model, "smsa", None, "test")
    assert evaluate_folder(model, "", None, "train").rows == 120


def test_a_task_with_other_class_ids_is_scored_by_their_names(model: Path, nusax: Path) -> None:
    """Four texts are left, of which the model is wrong about the one with the wrong label."""
    found = evaluate_folder(model, "nusax-indonesian", nusax, "test")
    assert found.notes == (
        "2 of 6 test texts were left out: they are in the train split of smsa too.",
    )
    assert found.rows == 4
    rows = (nusax / "indonesian" / "test.csv").read_text(encoding="utf-8").splitlines()[1:]
    texts, labels = zip(*(row.split(",")[1:] for row in (*rows[:3], rows[5])), strict=True)
    answers = [answer.to_json()["label"] for answer in quantkit.load(model).predict(texts)]
    assert answers[:3] == list(LABELS) == list(labels[:3])
    assert answers[3] != labels[3]
    assert found.scores["accuracy"] == 3 / 4
    assert [each.name for each in found.classes] == list(LABELS)
    wrong = LABELS.index(labels[3])
    assert [each.support for each in found.classes] == [1 + (at == wrong) for at in range(3)]
    assert found.classes[wrong].recall == 1 / 2


def test_the_command_says_what_was_left_out(model: Path, nusax: Path) -> None:
    printed = succeed("eval", model, "--task", "nusax-indonesian", "--data", nusax)
    assert printed.startswith("Note: 2 of 6 test texts were left out")
    assert "accuracy   75.00 %" in printed
    assert "positive  precision" in printed


def test_a_checkpoint_of_another_task_is_refused_with_both_described(
    model: Path, base: Path
) -> None:
    names = quantized(base, "nergrit")
    with pytest.raises(DataError) as caught:
        evaluate_folder(model, "nergrit", names.data, "test")
    message = str(caught.value)
    assert f"{model} answers classification (positive, neutral, negative); nergrit" in message
    assert "asks for words (I-PERSON, B-ORGANISATION" in message
    reviews = quantized(base, "casa")
    outcome = invoke(
        *("eval", names.runs / "nergrit" / "w8a8", "--task", "casa", "--data", reviews.data)
    )
    assert outcome.code == 2
    assert "asks for aspects (negative, neutral, positive) of fuel, machine," in outcome.err


def test_a_folder_without_a_run_needs_a_task(model: Path, line: Line, tmp_path: Path) -> None:
    alone = shutil.copytree(model, tmp_path / "alone")
    with pytest.raises(DataError, match=r"alone belongs to no run\. .* --task"):
        evaluate_folder(alone, "", None, "test")
    found = evaluate_folder(alone, "smsa", line.data, "test")
    assert found == evaluate_folder(model, "", None, "test")


def test_an_unknown_split_lists_those_there_are(model: Path) -> None:
    with pytest.raises(DataError, match="--split is 'tset'; there are train, validation, test"):
        evaluate_folder(model, "", None, "tset")
