"""Where the files of a table are, and the rows of each format."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from quantkit.data.tablefile import find_tables, read_table
from quantkit.errors import DataError


def write(file: Path, content: str | bytes = b"") -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def write_parquet(file: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_a_file_is_all_and_a_folder_has_a_file_per_split(tmp_path: Path) -> None:
    train, dev, test = (tmp_path / name for name in ("train.csv", "dev.jsonl", "test.parquet"))
    for file in (train, dev, test, tmp_path / "notes.txt"):
        write(file)
    assert find_tables(train) == {"all": train}
    assert find_tables(write(tmp_path / "A.CSV")) == {"all": tmp_path / "A.CSV"}
    assert find_tables(tmp_path) == {"train": train, "validation": dev, "test": test}
    dev.unlink()
    assert find_tables(tmp_path) == {"train": train, "test": test}


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (["a.xlsx"], "a.xlsx", r"a.xlsx is not one of .csv, .tsv, .jsonl, .json, .parquet"),
        ([], "nowhere", r"nowhere: no such file or folder"),
        (["train.csv"], "", r"has no test file. A folder needs train and test"),
        (["data.csv"], "", r"has no train file"),
        (
            ["train.csv", "val.csv", "valid.tsv", "test.csv"],
            "",
            r"has valid.tsv and val.csv: two files for the validation split",
        ),
    ],
)
def test_folders_that_cannot_be_used(
    tmp_path: Path, names: list[str], chosen: str, message: str
) -> None:
    for name in names:
        write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        find_tables(tmp_path / chosen)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda folder: write(folder / "f.csv", 'id,text\n1,NA\n2,"001\n"\n'),
    "csv with semicolons": lambda folder: write(
        folder / "f.csv", '\ufeffid;text\n1;NA\n2;"001\n"\n'
    ),
    "csv with tabs": lambda folder: write(folder / "f.csv", 'id\ttext\n1\tNA\n2\t"001\n"\n'),
    "CSV": lambda folder: write(folder / "F.CSV", 'id,text\n1,NA\n2,"001\n"\n'),
    "tsv": lambda folder: write(folder / "f.tsv", 'id\ttext\r\n1\tNA\r\n2\t"001\n"\r\n'),
    "jsonl": lambda folder: write(
        folder / "f.jsonl", '\ufeff{"text": "NA"}\r\n\n{"text": "001\\n"}'
    ),
    "json lines": lambda folder: write(
        folder / "f.json", '{"text": "NA"}\n{"text": "001\\n", "id": 2}\n'
    ),
    "json list": lambda folder: write(
        folder / "f.json", '\n [{"text": "NA"},\n {"text": "001\\n"}]'
    ),
    "parquet": lambda folder: write_parquet(folder / "f.parquet", id=[1, 2], text=["NA", "001\n"]),
}


@pytest.mark.parametrize("form", WRITERS)
def test_cells_are_taken_as_they_are_written(form: str, tmp_path: Path) -> None:
    file = WRITERS[form](tmp_path)
    places, rows = zip(*read_table(file, ["text"]), strict=True)
    assert [row["text"] for row in rows] == ["NA", "001\n"]
    lines = {"jsonl": (":1", ":3"), "json lines": (":1", ":2"), "csv": (":2", ":3")}
    lines |= dict.fromkeys(("tsv", "CSV", "csv with semicolons", "csv with tabs"), lines["csv"])
    assert places == tuple(f"{file}{at}" for at in lines.get(form, (", row 1", ", row 2")))


def test_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", '{"text": "2020-01-01"}\n{"text": 7}\n')
    assert [row["text"] for _, row in read_table(file, ["text"])] == ["2020-01-01", 7]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.jsonl", '{"text": "a"}\n{"text": "b"\n', r"f.jsonl:2 is not JSON: Expecting"),
        ("f.jsonl", '{"text": "a"}\n["b"]\n', r"f.jsonl:2: expected a JSON object, found"),
        ("f.jsonl", '{"Text": "a"}\n', r"f.jsonl:1: unknown column 'text'.*mean 'Text'"),
        ("f.json", '[{"text": "a"}, 3]', r"f.json, row 2: expected a JSON object, found '3'"),
        ("f.json", '[{"text": "a"}', r"f.json is not JSON: Expecting"),
        ("f.json", '{\n"text": "a"}', r"f.json:1 is not JSON"),
        ("f.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"f.jsonl:2 is not UTF-8"),
        ("f.csv", b"text\n\xe9\n", r"f.csv:2 is not UTF-8"),
        ("f.csv", "Text,label\n", r"f.csv:1: unknown column 'text'. Known columns: Text, label"),
        ("f.csv", "Text;label\n", r"f.csv:1: unknown column 'text'. Known columns: Text;label"),
        ("f.csv", "x" * 200_000, r"f.csv:1: field larger than field limit"),
        ("f.parquet", "PAR1", r"f.parquet is not a sound Parquet file: .*Write it again"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_table(write(tmp_path / name, content), ["text"]))


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "f.parquet", texts=["a"])
    with pytest.raises(DataError, match=r"unknown column 'text'. .*Did you mean 'texts'"):
        list(read_table(file, ["text"]))


def test_a_parquet_file_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    bad = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"f.parquet: a text after row 0 is not UTF-8"):
        list(read_table(tmp_path / "f.parquet", ["text"]))
