"""NusaX: twelve languages, each alone or all together."""

from collections import Counter
from pathlib import Path

import pytest

from quantkit.data import load_task
from quantkit.data.nusax import FILES, LANGUAGES, load_nusax
from quantkit.errors import DataError
from tests.conftest import shared_folder

CONTENT = 'id,text,label\n7,"{0}, satu",negative\n3,{0} dua,positive\n'


def write(folder: Path, language: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (folder / file).write_text(CONTENT.format(language), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "above", ["", "balinese", "nusax-sentiment/balinese", "datasets/sentiment/balinese"]
)
def test_folder_may_be_the_language_or_stand_above_it(tmp_path: Path, above: str) -> None:
    write(tmp_path / above, "balinese")
    task = load_nusax("nusax-balinese", tmp_path)
    assert task.labels == ("negative", "neutral", "positive")
    assert list(task.splits["test"]) == [
        {"text": "balinese, satu", "label": 0},
        {"text": "balinese dua", "label": 2},
    ]


def test_all_languages_stand_in_a_fixed_order(tmp_path: Path) -> None:
    for language in reversed(LANGUAGES):
        write(tmp_path / "nusax-sentiment" / language, language)
    texts = list(load_nusax("nusax", tmp_path).splits["train"]["text"])
    assert [text.split()[0].strip(",") for text in texts[::2]] == sorted(LANGUAGES)
    assert len(texts) == 24


def test_a_missing_language_is_named(tmp_path: Path) -> None:
    write(tmp_path / "acehnese", "acehnese")
    with pytest.raises(DataError, match=r"nusax-balinese: no train.csv .*(\n.*)*IndoNLP/nusax"):
        load_nusax("nusax", tmp_path)


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_files(language: str) -> None:
    task = load_task(f"nusax-{language}", shared_folder("QUANTKIT_DATA", "data"))
    counts = [Counter(rows["label"]) for rows in task.splits.values()]
    assert [[count[at] for at in range(3)] for count in counts] == [
        [192, 119, 189],
        [38, 24, 38],
        [153, 96, 151],
    ]


def test_real_files_of_all_languages() -> None:
    task = load_task("nusax", shared_folder("QUANTKIT_DATA", "data"))
    assert [len(rows) for rows in task.splits.values()] == [6000, 1200, 4800]
