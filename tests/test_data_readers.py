"""Text files: bytes, line ends, quotes, lists in cells, and where a mistake is."""

from pathlib import Path

import pytest

from quantkit.data.naming import unknown
from quantkit.data.readers import parse_list, read_csv, read_lines, read_sentences
from quantkit.errors import DataError

LABELS = ("O", "B", "I")


def file_of(folder: Path, content: bytes | str) -> Path:
    file = folder / "f.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"\xef\xbb\xbfa\r\n" + "b\u2028c\x85d\n\ne".encode())
    assert list(read_lines(file)) == [(1, "a"), (2, "b\u2028c\x85d"), (3, ""), (4, "e")]


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"\xff\xfea\0", 1), (b"a\nb\xc3\n", 2), (b"x" * 100_000 + b"\n\n\xe9tat\n", 3)],
    ids=["utf-16", "cut character", "latin-1"],
)
def test_bytes_that_are_not_utf8(tmp_path: Path, content: bytes, line: int) -> None:
    file = file_of(tmp_path, content)
    with pytest.raises(DataError, match=rf"f.csv:{line} is not UTF-8 \(.*Save the file as UTF-8"):
        list(read_lines(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"f.csv cannot be read: No such file or directory"):
        list(read_lines(tmp_path / "f.csv"))


def test_csv_rows_know_the_line_they_begin_on(tmp_path: Path) -> None:
    content = 'text,label\n"satu\ndua, ""tiga""",1\n\n\u2028x,2\r\n" y",3'
    file = file_of(tmp_path, content)
    rows = list(read_csv(file, ["text"]))
    assert [row["text"] for _, row in rows] == ['satu\ndua, "tiga"', "\u2028x", " y"]
    assert [where for where, _ in rows] == [f"{file}:{line}" for line in (2, 5, 6)]


def test_csv_with_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = file_of(tmp_path, b'\xef\xbb\xbf"text"\tlabel\r\na\tb\r\n')
    assert [row for _, row in read_csv(file, ["text"], "\t")] == [{"text": "a", "label": "b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b\nc\n", r":3: expected 2 columns \(text, label\), found 1: 'c'"),
        ('text,label\n"a\nb",x\nc,d,e\n', r":4: expected 2 columns .* found 3: 'c, d, e'"),
        ('text,label\na,b\n"c,d\n', r":3: unexpected end of data. Put double quotes"),
        ('text,label\n"a"b,c\n', r":2: .* expected after .*write each of them twice"),
        ("Text,label\n", r":1: unknown column 'text'. Known columns: Text, .*mean 'Text'\?$"),
        ("text,label,text\n", r":1: the column 'text' stands there twice"),
        ("", r" holds no rows"),
        ("text,label\n" + "x" * 200_000 + ",b\n", r":2: field larger than field limit"),
    ],
    ids=["short", "long", "open quote", "stray quote", "header", "twice", "empty", "huge"],
)
def test_broken_csv(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=f"f.csv{message}"):
        list(read_csv(file_of(tmp_path, content), ["text"]))


def test_sentences_are_split_at_tabs_and_blank_lines(tmp_path: Path) -> None:
    file = file_of(tmp_path, "\nsalah satu\tB\n\xa0\tI\n\n \nia\tO\r\n\n\n")
    rows = list(read_sentences(file, LABELS))
    assert [(row.first, row.answer) for row in rows] == [
        (["salah satu", "\xa0"], ["B", "I"]),
        (["ia"], ["O"]),
    ]
    assert [row.where for row in rows] == [f"{file}:2", f"{file}:6"]


def test_the_last_sentence_needs_no_blank_line(tmp_path: Path) -> None:
    rows = list(read_sentences(file_of(tmp_path, "a\tO\n\nb\tB\nc\tI"), LABELS))
    assert [row.first for row in rows] == [["a"], ["b", "c"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\tc\tO\n", r":2: expected word TAB label, found 3 columns: 'b\\tc\\tO'"),
        ("a\tO\n\nb\n", r":3: expected word TAB label, found 1 columns: 'b'"),
        ("a\tO\n\tO\n", r":2: expected word TAB label, found an empty word"),
        ("a\tO\nb\tb\n", r":2: unknown label 'b'. Known labels: O, B, I. Did you mean 'B'"),
    ],
)
def test_broken_sentences(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=f"f.csv{message}"):
        list(read_sentences(file_of(tmp_path, content), LABELS))


def test_lists_in_cells_are_read_and_nothing_is_run() -> None:
    assert parse_list("['a', \"b'c\", '\\u2028']", "q", "f:2") == ["a", "b'c", "\u2028"]
    for cell in ("['a', 1]", "['a'", "('a',)", "", "[a]", "[__import__('os').getcwd()]"):
        with pytest.raises(DataError, match=r"^f:2: the column 'q' holds .*not a list of strings"):
            parse_list(cell, "q", "f:2")


def test_the_nearest_name_is_found_whatever_its_case() -> None:
    assert unknown("label", " b-per", ["O", "B-PER"]).endswith("Did you mean 'B-PER'?")
    assert unknown("task", "xyz", ["a", "b"]) == "unknown task 'xyz'. Known tasks: a, b."
