"""PPKM tweets: both forms of the file, splits by distinct text, and what is left out."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.data import TaskData, load_task
from quantkit.data.ppkm import load_ppkm
from quantkit.errors import DataError
from tests.conftest import shared_folder

CLEANED = "cleaned_text,sentiment\n" + "".join(
    f"kata {at},{at % 3}\nkata {at},{at % 3}\n" for at in range(60)
)


def write(folder: Path, content: str, name: str = "data_clean.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def texts_of(task: TaskData) -> list[set[str]]:
    return [set(rows["text"]) for rows in task.splits.values()]


def test_repeated_texts_stay_in_one_split(tmp_path: Path) -> None:
    write(tmp_path, CLEANED)
    task = load_ppkm("ppkm", tmp_path)
    assert task.labels == ("positive", "neutral", "negative")
    assert [len(rows) for rows in task.splits.values()] == [96, 12, 12]
    train, validation, test = texts_of(task)
    assert not train & validation
    assert not (train | validation) & test
    for rows in task.splits.values():
        assert all(row["label"] == int(row["text"].split()[1]) % 3 for row in rows)


def test_empty_and_contradictory_texts_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, CLEANED + " ,1\nkata 0,1\nkata 1,2\n")
    task = load_ppkm("ppkm", file)
    assert set.union(*texts_of(task)) == {f"kata {at}" for at in range(2, 60)}
    assert task.notes == (
        "Left out: rows without text (1), rows whose text has several labels (6).",
    )


def test_the_original_file_is_known_by_its_tabs_and_cleaned(tmp_path: Path) -> None:
    rows = "".join(
        f'2021-07-01\tuser\t"RT @a: PPKM, ""level"" {at}  http://t.co/{at} #ppkm"\t{at % 3}\n'
        for at in range(10)
    )
    write(tmp_path, f"Date\tUser\tTweet\tsentiment\n{rows}", "INA_TweetsPPKM_Labeled_Pure.csv")
    texts = set.union(*texts_of(load_ppkm("ppkm", tmp_path)))
    assert texts == {f'ppkm, "level" {at}' for at in range(10)}


@pytest.mark.parametrize("above", ["", "ppkm-tweets", "twitter-dataset-cleaned"])
def test_folder_may_be_the_file_its_folder_or_the_one_above(tmp_path: Path, above: str) -> None:
    file = write(tmp_path / above, CLEANED)
    for place in (file, file.parent, tmp_path):
        assert load_ppkm("ppkm", place).splits["train"].num_rows == 96


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cleaned_text,sentiment\na,3\n", r"csv:2: unknown label '3'. Known labels: 0, 1, 2"),
        (
            "text,sentiment\na,1\n",
            r"csv:1: unknown column 'cleaned_text'. Known columns: text, sentiment",
        ),
        ("Date\tUser\ttweet\tsentiment\n", r"csv:1: unknown column 'Tweet'. .*mean 'tweet'"),
        ("cleaned_text,sentiment\na,1\nb,2\n", r"csv \(train\) holds no rows"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_ppkm("ppkm", write(tmp_path, content))


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_ppkm("ppkm", tmp_path)
    assert f"\n  {tmp_path / 'ppkm-tweets' / 'data_clean.csv'}\n" in str(caught.value)
    assert "kaggle.com" in str(caught.value)


def test_real_file() -> None:
    task = load_task("ppkm", shared_folder("QUANTKIT_DATA", "data"))
    train, validation, test = texts_of(task)
    assert not train & validation
    assert not (train | validation) & test
    assert (len(train), len(validation), len(test)) == (16821, 2102, 2102)
    assert sum(len(rows) for rows in task.splits.values()) == 23644 - 1 - 265
    assert task.notes == (
        "Left out: rows without text (1), rows whose text has several labels (265).",
    )
    labels = {row["text"]: row["label"] for rows in task.splits.values() for row in rows}
    everything = np.bincount(list(labels.values()))
    for part in (validation, test):
        counts = np.bincount([labels[text] for text in part])
        assert (np.abs(counts - everything * len(part) / len(labels)) < 1).all()


@pytest.mark.parametrize("size", [1000, 5000])
def test_smaller_tasks_are_drawn_from_the_same_splits(size: int) -> None:
    folder = shared_folder("QUANTKIT_DATA", "data")
    small, whole = load_task(f"ppkm-{size}", folder), load_task("ppkm", folder)
    assert [len(rows) for rows in small.splits.values()] == [size * 8 // 10, size // 10, size // 10]
    assert task_texts_are_distinct(small)
    assert all(part <= above for part, above in zip(texts_of(small), texts_of(whole), strict=True))
    share = [np.bincount(task.splits["train"]["label"]) for task in (small, whole)]
    assert share[0] / share[0].sum() == pytest.approx(share[1] / share[1].sum(), abs=0.03)
    assert small.notes[-1] == f"{size} distinct texts were drawn, stratified by label."


def task_texts_are_distinct(task: TaskData) -> bool:
    return all(len(set(rows["text"])) == len(rows) for rows in task.splits.values())
