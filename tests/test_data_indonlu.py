"""SmSA in IndoNLU's original files."""

import os
from collections import Counter
from pathlib import Path

import pytest

from quantkit.data import load_task
from quantkit.data.indonlu import load_smsa
from quantkit.errors import DataError

TASK = "smsa_doc-sentiment-prosa"
FILES = ("train_preprocess.tsv", "valid_preprocess.tsv", "test_preprocess.tsv")


def write(folder: Path, test: bytes = b"enak\tpositive\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES[0]).write_bytes(b"enak sekali\tpositive\nbiasa\tneutral\nburuk\tnegative\n")
    (folder / FILES[1]).write_bytes(b"buruk\tnegative\n")
    (folder / FILES[2]).write_bytes(test)
    return folder


def read_test(tmp_path: Path, content: bytes) -> list[dict[str, object]]:
    return list(load_smsa(write(tmp_path, content)).splits["test"])


def test_rows_in_order_with_indonlu_class_ids(tmp_path: Path) -> None:
    task = load_task("smsa", write(tmp_path))
    assert (task.name, task.labels, task.notes) == ("smsa", ("positive", "neutral", "negative"), ())
    assert list(task.splits["train"]["text"]) == ["enak sekali", "biasa", "buruk"]
    assert list(task.splits["train"]["label"]) == [0, 1, 2]
    assert list(task.splits["validation"]["label"]) == [2]


@pytest.mark.parametrize("above", ["", TASK, f"indonlu/{TASK}", f"dataset/{TASK}"])
def test_folder_may_be_the_task_or_stand_above_it(tmp_path: Path, above: str) -> None:
    write(tmp_path / above)
    assert len(load_smsa(tmp_path).splits["train"]) == 3


def test_missing_folder_says_where_it_looked_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_smsa(tmp_path)
    for place in (".", TASK, f"indonlu/{TASK}", f"dataset/{TASK}"):
        assert f"\n  {tmp_path / place}\n" in str(caught.value)
    assert "github.com/IndoNLP/indonlu" in str(caught.value)


def test_missing_split_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / FILES[2]).unlink()
    with pytest.raises(DataError, match=rf"{FILES[2]}: no such file"):
        load_smsa(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"enak\tpositive\nburuk\n", r"tsv:2: expected 2 columns .* found 1: 'buruk'"),
        (b"enak\tpositive\n\nburuk\tnegative\n", r"tsv:2: expected 2 columns .* found 1: ''"),
        (b"a\tb\tpositive\n", r"tsv:1: expected 2 columns .* found 3"),
        (b"enak\tpositif\n", r"tsv:1: unknown label 'positif'.*Did you mean 'positive'"),
        (b"enak\tpositive\n\tnegative\n", r"tsv:2: the text is empty"),
        (b"", r"test_preprocess.tsv holds no rows"),
        (b"\xff\xfe\tpositive\n", r"test_preprocess.tsv is not UTF-8"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_test(tmp_path, content)


def test_quotes_and_unusual_line_separators_are_text(tmp_path: Path) -> None:
    content = '"enak" kata\u2028dia\tpositive\n"\tnegative\n'.encode()
    texts = [row["text"] for row in read_test(tmp_path, content)]
    assert texts == ['"enak" kata\u2028dia', '"']


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    rows = read_test(tmp_path, b"\xef\xbb\xbfenak\tpositive\r\nburuk\tnegative\r\n")
    assert rows == [{"text": "enak", "label": 0}, {"text": "buruk", "label": 2}]


def real_data() -> Path:
    beside = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("QUANTKIT_DATA", beside))


@pytest.mark.skipif(not (real_data() / "indonlu" / TASK).is_dir(), reason="no IndoNLU files")
def test_real_files() -> None:
    task = load_task("smsa", real_data())
    counts = {
        split: [Counter(rows["label"])[label] for label in range(3)]
        for split, rows in task.splits.items()
    }
    assert counts == {  # positive, neutral, negative
        "train": [6416, 1148, 3436],
        "validation": [735, 131, 394],
        "test": [208, 88, 204],
    }
