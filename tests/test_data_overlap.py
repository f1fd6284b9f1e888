"""Test texts that a model was trained on are left out."""

from collections.abc import Sequence

import pytest

from quantkit.data import TaskData, load_task, without_overlap
from quantkit.data.schema import SPLITS, Example, build_task
from quantkit.errors import DataError
from quantkit.heads import Head
from tests.conftest import shared_folder


def task_of(name: str, train: Sequence[str], test: Sequence[str]) -> TaskData:
    head = Head("classification", ("a", "b"))
    texts = {"train": train, "validation": train, "test": test}
    rows = {
        split: [Example("f:1", text, "ab"[at % 2]) for at, text in enumerate(texts[split])]
        for split in SPLITS
    }
    return build_task(name, head, rows, dict.fromkeys(SPLITS, "f"), ("first",))


def test_case_punctuation_and_spaces_make_no_difference() -> None:
    trained = task_of("mine", ["Enak  sekali , ya !", "biasa"], ["lain"])
    other = task_of("other", ["x", "y"], ["enak sekali, ya", "enak sekali", "BIASA.", "biasanya"])
    kept = without_overlap(other, trained)
    assert list(kept.splits["test"]["text"]) == ["enak sekali", "biasanya"]
    assert list(kept.splits["test"]["label"]) == [1, 1]
    assert list(kept.splits["train"]["text"]) == ["x", "y"]
    assert kept.notes == (
        "first",
        "2 of 4 test texts were left out: they are in the train split of mine too.",
    )
    assert len(other.splits["test"]) == 4


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"every test text of b is in the train split of a"):
        without_overlap(task_of("b", ["x", "y"], ["satu"]), task_of("a", ["satu", "dua"], ["z"]))


def test_pairs_and_sentences_are_compared_as_wholes() -> None:
    head = Head("words", ("O", "B"))

    def sentences(*words: str) -> TaskData:
        rows = [Example("f:1", part.split(), ["O", "B"], ["siapa", "?"]) for part in words]
        return build_task("w", head, dict.fromkeys(SPLITS, rows), dict.fromkeys(SPLITS, "f"))

    kept = without_overlap(sentences("Joko Widodo", "ia pergi"), sentences("joko widodo"))
    assert list(kept.splits["test"]["tokens"]) == [["ia", "pergi"]]


def test_real_files_of_nusax_and_smsa() -> None:
    folder = shared_folder("QUANTKIT_DATA", "data")
    nusax, smsa = load_task("nusax-indonesian", folder), load_task("smsa", folder)
    kept = without_overlap(nusax, smsa)
    assert len(kept.splits["test"]) == 290
    assert kept.notes[0].startswith("110 of 400 test texts")
