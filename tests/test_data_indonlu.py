"""IndoNLU's twelve tasks in their original files."""

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from quantkit.data import load_task
from quantkit.data.indonlu import TASKS, load_indonlu
from quantkit.errors import DataError
from tests.conftest import shared_folder

SMSA = TASKS["smsa"]


def write(folder: Path, task: str, train: str, test: str | None = None) -> Path:
    """The files of a task; validation is like train, and so is test where it is not given."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = (train, train, train if test is None else test)
    for file, content in zip(TASKS[task].files, contents, strict=True):
        (folder / file).write_text(content, encoding="utf-8", newline="")
    return folder


def write_smsa(folder: Path, test: bytes = b"enak\tpositive\n") -> Path:
    write(folder, "smsa", "enak sekali\tpositive\nbiasa\tneutral\nburuk\tnegative\n")
    (folder / SMSA.files[2]).write_bytes(test)
    return folder


def test_rows_in_order_with_indonlu_class_ids(tmp_path: Path) -> None:
    task = load_task("smsa", write_smsa(tmp_path))
    assert (task.name, task.labels, task.notes) == ("smsa", ("positive", "neutral", "negative"), ())
    assert list(task.splits["train"]["text"]) == ["enak sekali", "biasa", "buruk"]
    assert list(task.splits["train"]["label"]) == [0, 1, 2]
    assert list(task.splits["test"]["label"]) == [0]


@pytest.mark.parametrize("above", ["", "{0}", "indonlu/{0}", "dataset/{0}"])
def test_folder_may_be_the_task_or_stand_above_it(tmp_path: Path, above: str) -> None:
    write_smsa(tmp_path / above.format(SMSA.folder))
    assert len(load_indonlu("smsa", tmp_path).splits["train"]) == 3


def test_missing_folder_says_where_it_looked_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_indonlu("smsa", tmp_path)
    for place in (".", SMSA.folder, f"indonlu/{SMSA.folder}", f"dataset/{SMSA.folder}"):
        assert f"\n  {tmp_path / place}\n" in str(caught.value)
    assert "github.com/IndoNLP/indonlu" in str(caught.value)


def test_missing_split_is_named(tmp_path: Path) -> None:
    (write_smsa(tmp_path) / SMSA.files[2]).unlink()
    with pytest.raises(DataError, match=rf"{SMSA.files[2]}: no such file. Get it from"):
        load_indonlu("smsa", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"enak\tpositive\nburuk\n", r"tsv:2: expected 2 columns .* found 1: 'buruk'"),
        (b"enak\tpositive\n\nburuk\tnegative\n", r"tsv:2: expected 2 columns .* found 1: ''"),
        (b"a\tb\tpositive\n", r"tsv:1: expected 2 columns .* found 3"),
        (b"enak\tpositif\n", r"tsv:1: unknown label 'positif'.*Did you mean 'positive'"),
        (b"enak\tpositive\n\tnegative\n", r"tsv:2: the text is empty"),
        (b"enak\tpositive\na\0b\tnegative\n", r"tsv:2: the text holds a NUL character"),
        (b"", r"test_preprocess.tsv holds no rows"),
        (b"enak\tpositive\n\xff\tpositive\n", r"test_preprocess.tsv:2 is not UTF-8"),
    ],
)
def test_broken_lines_of_smsa(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_indonlu("smsa", write_smsa(tmp_path, content))


def test_quotes_and_unusual_line_separators_are_text(tmp_path: Path) -> None:
    content = '"enak" kata\u2028dia\tpositive\r\n"\tnegative\n'.encode()
    task = load_indonlu("smsa", write_smsa(tmp_path, b"\xef\xbb\xbf" + content))
    assert list(task.splits["test"]["text"]) == ['"enak" kata\u2028dia', '"']


def test_emot_has_its_columns_the_other_way_round(tmp_path: Path) -> None:
    write(tmp_path, "emot", 'label,tweet\nfear,takut\nhappy,"ya,\n""hore"""\n')
    rows = load_indonlu("emot", tmp_path).splits["test"]
    assert list(rows) == [{"text": "takut", "label": 3}, {"text": 'ya,\n"hore"', "label": 4}]


def test_aspects_stand_in_the_order_of_the_head(tmp_path: Path) -> None:
    rows = (
        "service,fuel,machine,others,part,price,sentence\n"
        "positive,negative,neutral,neutral,neutral,neutral,boros\n"
        "positive,positive,neutral,neutral,neutral,neutral,irit\n"
    )
    task = load_indonlu("casa", write(tmp_path, "casa", rows))
    assert task.head.aspects == ("fuel", "machine", "others", "part", "price", "service")
    assert list(task.splits["test"]["label"]) == [[0, 1, 1, 1, 1, 2], [2, 1, 1, 1, 1, 2]]


def test_a_bad_aspect_is_named(tmp_path: Path) -> None:
    header = "sentence,fuel,machine,others,part,price,service\n"
    write(tmp_path, "casa", header + "x,neutral,neutral,neutral,neutral,netral,neutral\n")
    with pytest.raises(DataError, match=r"csv:2: 'price' has an unknown label 'netral'"):
        load_indonlu("casa", tmp_path)


def test_wrete_is_a_pair(tmp_path: Path) -> None:
    rows = "sent_A,sent_B,category,label\na,b,c,NotEntail\nd,e,f,Entail_or_Paraphrase\n"
    task = load_indonlu("wrete", write(tmp_path, "wrete", rows))
    assert task.splits["test"].column_names == ["text", "text_pair", "label"]
    assert list(task.splits["test"])[1] == {"text": "d", "text_pair": "e", "label": 1}


FACQA = "question,passage,seq_label\n\"['Siapa', '?']\",\"['Ia', 'Joko']\",\"['O', 'B']\"\n"


def test_facqa_has_a_question_before_each_passage(tmp_path: Path) -> None:
    task = load_indonlu("facqa", write(tmp_path, "facqa", FACQA))
    assert list(task.splits["test"]) == [
        {"tokens": ["Ia", "Joko"], "question": ["Siapa", "?"], "label": [0, 1]}
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("['Ia', 'Joko']", "['Ia', Joko]", r"csv:2: the column 'passage' holds .\['Ia', Joko\]"),
        ("['O', 'B']", "['O']", r"csv:2: 2 words but 1 labels"),
        ("['O', 'B']", "['O', 'b']", r"csv:2: 'Joko' has an unknown label 'b'"),
        ("['Siapa', '?']", "[]", r"csv:2: the question has no words"),
    ],
)
def test_broken_cells_of_facqa(tmp_path: Path, old: str, new: str, message: str) -> None:
    write(tmp_path, "facqa", FACQA, FACQA.replace(old, new))
    with pytest.raises(DataError, match=message):
        load_indonlu("facqa", tmp_path)


def test_terma_train_loses_the_validation_sentences(tmp_path: Path) -> None:
    write(tmp_path, "terma", "kamar\tB-ASPECT\n\nbersih\tB-SENTIMENT\nsih\tO\n\nkamar\tO\n")
    (tmp_path / "valid_preprocess.txt").write_text("kamar\tB-ASPECT\n")
    task = load_indonlu("terma", tmp_path)
    assert list(task.splits["train"]["tokens"]) == [["bersih", "sih"]]
    assert task.notes == (
        "TermA: 2 sentences of train that are in validation too were left out of train.",
    )


ROWS = {
    "emot": (3521, 440, 440),
    "smsa": (11000, 1260, 500),
    "casa": (810, 90, 180),
    "hoasa": (2283, 285, 286),
    "wrete": (300, 50, 100),
    "posp": (6720, 840, 840),
    "bapos": (8000, 1000, 1029),
    "terma": (1983, 1000, 1000),  # 3000 in train, of which 1017 are in validation too
    "keps": (800, 200, 247),
    "nergrit": (1672, 209, 209),
    "nerp": (6720, 840, 840),
    "facqa": (2495, 311, 311),
}
COUNTS = {  # of each label, in the order of the ids
    "emot": ([798, 881, 509, 519, 814], [99, 110, 64, 65, 102], [100, 110, 64, 65, 101]),
    "smsa": ([6416, 1148, 3436], [735, 131, 394], [208, 88, 204]),
    "wrete": ([117, 183], [19, 31], [39, 61]),
}
SIZES = {"posp": 26, "bapos": 41, "terma": 5, "keps": 3, "nergrit": 7, "nerp": 11, "facqa": 3}


@pytest.mark.parametrize("name", TASKS)
def test_real_files(name: str) -> None:
    task = load_task(name, shared_folder("QUANTKIT_DATA", "data"))
    assert tuple(len(rows) for rows in task.splits.values()) == ROWS[name]
    if name in COUNTS:
        counts = [Counter(rows["label"]) for rows in task.splits.values()]
        ids = range(len(task.labels))
        assert tuple([count[at] for at in ids] for count in counts) == COUNTS[name]
    if name in SIZES:
        assert len(set(task.labels)) == len(task.labels) == SIZES[name]
        seen = {tag for rows in task.splits.values() for tag in chain(*rows["label"])}
        assert seen == set(range(SIZES[name]))
    assert bool(task.notes) == (name == "terma")


def test_real_aspects_are_mostly_neutral_and_one_class_is_rare() -> None:
    folder = shared_folder("QUANTKIT_DATA", "data")
    for name, share in (("casa", 0.78), ("hoasa", 0.80)):
        counts = Counter(chain(*load_task(name, folder).splits["train"]["label"]))
        assert counts[1] / counts.total() == pytest.approx(share, abs=0.01)
    assert counts[3] == 9  # neg_pos of HoASA


def test_real_tokens_hold_spaces_and_one_label_is_new_in_validation() -> None:
    folder = shared_folder("QUANTKIT_DATA", "data")
    posp = load_task("posp", folder).splits
    spaced = [sum(" " in token for token in chain(*rows["tokens"])) for rows in posp.values()]
    assert spaced == [668, 75, 87]
    bapos = load_task("bapos", folder)
    new = bapos.labels.index("I-IN")
    found = [new in set(chain(*rows["label"])) for rows in bapos.splits.values()]
    assert found == [False, True, True]
