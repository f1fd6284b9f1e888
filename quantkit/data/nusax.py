"""NusaX: the sentiment of parallel texts in twelve languages (Winata et al., EACL 2023).

The files come from github.com/IndoNLP/nusax, folder `datasets/sentiment/`, one folder per
language with train.csv, valid.csv and test.csv.
"""

from collections.abc import Iterator
from pathlib import Path

from quantkit.data.readers import find_folder, read_csv
from quantkit.data.schema import SPLITS, Example, TaskData, build_task
from quantkit.heads import Head

__all__ = ["FILES", "HOW_TO_GET", "LANGUAGES", "languages_of", "load_nusax"]

HOW_TO_GET = "Get it from github.com/IndoNLP/nusax, folder datasets/sentiment/"
LANGUAGES = (
    "acehnese",
    "balinese",
    "banjarese",
    "buginese",
    "english",
    "indonesian",
    "javanese",
    "madurese",
    "minangkabau",
    "ngaju",
    "sundanese",
    "toba_batak",
)
FILES = ("train.csv", "valid.csv", "test.csv")  # in the order of SPLITS
HEAD = Head("classification", ("negative", "neutral", "positive"))


def languages_of(name: str) -> tuple[str, ...]:
    """The languages of a task: all for `nusax`, one for `nusax-<language>`."""
    return LANGUAGES if name == "nusax" else (name.removeprefix("nusax-"),)


def load_nusax(name: str, folder: Path) -> TaskData:
    """Read `nusax-<language>`, or `nusax`: all languages, one after the other.

    `folder` is the language's folder (of one language), the folder that holds the languages,
    the one above it, or a checkout of the repository.

    Raises:
        DataError: a file is missing, not UTF-8, or has a row that is not as it should be.
    """
    languages = languages_of(name)
    homes = [_find(language, folder, alone=len(languages) == 1) for language in languages]
    rows = {
        split: [row for home in homes for row in _read(home / file)]
        for split, file in zip(SPLITS, FILES, strict=True)
    }
    above = homes[0] if len(homes) == 1 else homes[0].parent
    return build_task(name, HEAD, rows, dict.fromkeys(SPLITS, str(above)))


def _find(language: str, folder: Path, *, alone: bool) -> Path:
    above = ("", "nusax-sentiment", "sentiment", "datasets/sentiment")
    places = [folder / place / language for place in above]
    advice = f"{HOW_TO_GET}{language}"
    return find_folder(f"nusax-{language}", [folder, *places] if alone else places, FILES, advice)


def _read(file: Path) -> Iterator[Example]:
    for where, row in read_csv(file, ["text", "label"]):
        yield Example(where, row["text"], row["label"])
