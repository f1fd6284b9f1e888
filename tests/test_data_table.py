"""A table of the user's own: labels, splits, cleaning, and rows that stay on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import Dataset

from quantkit.data import TaskData, inputs_of, load_task, references_of
from quantkit.data import table as table_module
from quantkit.errors import DataError
from quantkit.source import Cleaning, Source, Split


def write_csv(file: Path, rows: Sequence[tuple[str, ...]], header: str = "text,label") -> Path:
    lines = [header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def numbered(count: int, classes: int = 2) -> list[tuple[str, ...]]:
    return [(f"kata {at}", str(at % classes)) for at in range(count)]


def texts_of(task: TaskData) -> dict[str, set[str]]:
    return {split: set(rows["text"]) for split, rows in task.splits.items()}


def test_a_file_is_split_by_distinct_text(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "my [data] *.csv", numbered(100) * 2)
    task = load_task("custom", file)
    assert (task.name, task.head.kind, task.labels, task.notes) == (
        "custom",
        "classification",
        ("0", "1"),
        (),
    )
    assert [len(rows) for rows in task.splits.values()] == [160, 20, 20]
    texts = texts_of(task)
    assert set.union(*texts.values()) == {text for text, _ in numbered(100)}
    assert sum(len(part) for part in texts.values()) == 100
    for rows in task.splits.values():
        assert all(row["label"] == int(row["text"].split()[1]) % 2 for row in rows)
        assert 2 * sum(rows["label"]) == len(rows)


def test_another_seed_splits_otherwise_and_row_order_does_not(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "f.csv", numbered(100))
    other = write_csv(tmp_path / "g.csv", numbered(100)[::-1])
    texts = texts_of(load_task("custom", file))
    assert texts == texts_of(load_task("custom", other))
    assert texts != texts_of(load_task("custom", file, Source(split=Split(seed=1))))


def test_rows_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "CHUNK", 7)
    task = load_task("custom", write_csv(tmp_path / "f.csv", numbered(100)))
    for rows in task.splits.values():
        assert Path(rows.cache_files[0]["filename"]).is_file()
    inputs = inputs_of(task.splits["train"], task.head)
    labels = references_of(task.splits["train"], task.head)
    assert [int(str(text).split()[1]) % 2 for text in inputs.first] == list(labels)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "f.csv"]


def test_nothing_is_left_on_disk_when_the_process_ends(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "f.csv", numbered(100))
    program = (
        "import sys, tempfile; from pathlib import Path; from quantkit.data import load_task; "
        "load_task('custom', Path(sys.argv[1])); load_task('custom', Path(sys.argv[1])); "
        "print([path.name[:9] for path in Path(tempfile.gettempdir()).iterdir()])"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", program, file],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert (result.stdout, result.stderr) == ("['quantkit-']\n", "")
    assert list(temporary.iterdir()) == []


def test_a_folder_keeps_its_splits_and_labels_of_all_of_them(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", "10"), ("b", "2")])
    (tmp_path / "valid.jsonl").write_text('{"text": "c", "label": 2}\n')
    test = Dataset.from_dict({"text": ["d", "a"], "label": [7, 10]})
    test.to_parquet(tmp_path / "test.parquet")
    task = load_task("custom", tmp_path)
    assert task.labels == ("10", "2", "7")
    assert {split: list(rows["label"]) for split, rows in task.splits.items()} == {
        "train": [0, 1],
        "validation": [1],
        "test": [2, 0],
    }


def test_validation_is_carved_from_train_never_from_test(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", numbered(50) * 2)
    write_csv(tmp_path / "test.csv", [("uji", "0")])
    task = load_task("custom", tmp_path)
    texts = texts_of(task)
    assert texts["test"] == {"uji"}
    assert (len(texts["train"]), len(texts["validation"])) == (45, 5)
    assert not texts["train"] & texts["validation"]
    assert task.notes == ("Validation is 10% of the train texts: the data has no part for it.",)


def test_the_election_study(tmp_path: Path) -> None:
    """Neutral dropped, tweets cleaned, 90/10; the epoch is chosen on a part of the 90 %."""
    rows = [(f"RT @u: Pilih {at} http://t.co/x", "positif") for at in range(60)]
    rows += [(f"TIDAK  {at}", "negatif") for at in range(40)]
    rows += [("pilih 7", "positif"), ("@u #tag", "positif"), ("ya", "netral"), ("", "netral")]
    source = Source(
        text="tweet",
        label="sentimen",
        labels=("negatif", "positif"),
        drop_labels=("netral",),
        cleaning=Cleaning(),
        split=Split(validation=0.0, test=0.1),
    )
    file = write_csv(tmp_path / "f.csv", rows, "tweet,sentimen")
    task = load_task("custom", file, source)
    assert task.labels == ("negatif", "positif")
    assert [len(part) for part in texts_of(task).values()] == [81, 9, 10]
    assert sum(task.splits["test"]["label"]) == 6
    assert "pilih 7" in set.union(*texts_of(task).values())
    assert task.notes == (
        "Left out: rows without text after cleaning (1).",
        "Left out: rows with the label netral (2).",
        "Left out: rows that repeat an earlier text (1).",
        "Validation is 10% of the train texts: the data has no part for it.",
    )


def test_repeats_stay_where_cleaning_keeps_them(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "f.csv", [*numbered(40), ("KATA 1", "1")])
    task = load_task("custom", file, Source(cleaning=Cleaning(duplicates=False)))
    assert sum(len(rows) for rows in task.splits.values()) == 41
    assert task.notes == ()


def test_pairs_are_distinct_as_pairs(tmp_path: Path) -> None:
    rows = [("a", f"b {at}", str(at % 2)) for at in range(30)]
    file = write_csv(tmp_path / "f.csv", rows, "one,two,same")
    task = load_task("custom", file, Source(text="one", text_pair="two", label="same"))
    assert task.splits["train"].column_names == ["text", "text_pair", "label"]
    assert [len(rows) for rows in task.splits.values()] == [24, 3, 3]


def test_words_from_lists_and_from_text(tmp_path: Path) -> None:
    for name, form in (("train", list), ("dev", str), ("test", " ".join)):
        lines = [{"words": form(["Joko", f"ke-{at}"]), "tags": form(["B", "O"])} for at in (1, 2)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = load_task("custom", tmp_path, Source(tokens="words", label="tags"))
    assert (task.head.kind, task.labels) == ("words", ("B", "O"))
    expected = [{"tokens": ["Joko", f"ke-{at}"], "label": [0, 1]} for at in (1, 2)]
    assert all(list(rows) == expected for rows in task.splits.values())


def test_several_labels_numbers_and_vectors(tmp_path: Path) -> None:
    rows = [(f"kata {at}", "rasa, harga" if at % 2 else "", str(at / 2)) for at in range(20)]
    file = write_csv(tmp_path / "f.csv", rows, "text,topics,stars")
    topics = load_task("custom", file, Source(kind="multilabel", label="topics"))
    assert topics.labels == ("harga", "rasa")
    assert list(topics.splits["train"][:2]["label"]) == [[0, 0], [1, 1]]
    stars = load_task("custom", file, Source(kind="regression", label="stars"))
    assert all(row["label"] == int(row["text"][5:]) / 2 for row in stars.splits["train"])
    vectors = load_task("custom", file, Source(kind="features"))
    assert vectors.splits["train"].column_names == ["text"]


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        ([("a", "x"), (" ", "y")], Source(), r"f.csv:3: the text is empty"),
        ([("a", "x"), ("b\0", "y")], Source(), r"f.csv:3: the text holds a NUL character"),
        ([("a", "x"), ("b", "")], Source(), r"f.csv:3: the label is empty"),
        (
            [("a", "positif"), ("b", "Negatif")],
            Source(labels=("positif", "negatif")),
            r"f.csv:3: unknown label 'Negatif'.*mean 'negatif'",
        ),
        (numbered(9), Source(drop_labels=("O",)), r"data.drop_labels: unknown label 'O'. Known"),
        (numbered(9), Source(drop_labels=("0", "1")), r"f.csv: no row has a label"),
        (numbered(9, 1), Source(), r"f.csv: every row of the train split has the same answer"),
        ([], Source(), r"f.csv: no row has a label"),
        ([], Source(labels=("a",)), r"f.csv holds no rows"),
        (numbered(9), Source(split=Split(test=0.0)), r"f.csv: the test split has no rows"),
        (numbered(2), Source(), r"f.csv: the train split has no rows"),
        (numbered(9), Source(split=Split(0.5, 0.5)), r"data.split: validation 0.5 and test 0.5"),
        (numbered(9), Source(kind="regression", label="text"), r"f.csv:2: the label is 'kata 0'"),
        (numbered(9), Source(tokens="text"), r"f.csv:2: 2 words but 1 labels"),
        (numbered(9), Source(text="txt"), r"f.csv:1: unknown column 'txt'.*mean 'text'"),
    ],
)
def test_tables_that_cannot_be_used(
    tmp_path: Path, rows: list[tuple[str, ...]], source: Source, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_task("custom", write_csv(tmp_path / "f.csv", rows), source)
