"""Tweets about the restrictions of 2021 and 2022 in Indonesia (PPKM), with their sentiment.

Kaggle's `anggapurnama/twitter-dataset-ppkm`, in its original form (tab-separated, with the
columns Tweet and sentiment) or in a cleaned copy (comma-separated, cleaned_text and
sentiment). Neither comes with a split.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quantkit.data.cleaning import clean
from quantkit.data.readers import opened, read_csv
from quantkit.data.schema import SPLITS, Example, TaskData, build_task, check_label
from quantkit.data.split import draw, split_rows, text_key
from quantkit.errors import DataError
from quantkit.heads import Head
from quantkit.source import Cleaning, Split

__all__ = ["HOW_TO_GET", "SIZES", "load_ppkm"]

HOW_TO_GET = (
    "Get INA_TweetsPPKM_Labeled_Pure.csv from kaggle.com/datasets/anggapurnama/"
    "twitter-dataset-ppkm, and pass it or its folder with --data"
)
FILES = ("data_clean.csv", "INA_TweetsPPKM_Labeled_Pure.csv")
FOLDERS = ("", "ppkm-tweets", "twitter-dataset-cleaned")
SIZES: dict[str, int | None] = {"ppkm": None, "ppkm-1000": 1000, "ppkm-5000": 5000}
HEAD = Head("classification", ("positive", "neutral", "negative"))
CODES = ("0", "1", "2")  # of the labels, in the files
SHARES = Split(validation=0.1, test=0.1, seed=0)


def load_ppkm(name: str, folder: Path) -> TaskData:
    """Read `ppkm`, all rows, or `ppkm-1000` and `ppkm-5000`, so many distinct texts of it.

    The texts are split 80/10/10, stratified by label, and no text stands in two splits. The
    smaller tasks are drawn from each split of the whole one, so that no test text of one is
    in the train split of another. Rows without text and texts with several labels are left
    out. `folder` is the file, its folder, or the one above.

    Raises:
        DataError: no such file, no UTF-8, other columns, or an unknown label.
    """
    file = _find(folder)
    rows = list(_read(file))
    usable = _usable(rows)
    notes = [_dropped(rows, usable)]
    keys = np.array([text_key(str(row.first), SHARES.seed) for row in usable], dtype=np.uint64)
    strata = np.array([HEAD.labels.index(str(row.answer)) for row in usable], dtype=np.int64)
    parts = split_rows(keys, strata, SHARES)
    if size := SIZES[name]:
        parts = _smaller(parts, keys, strata, size)
        notes.append(f"{size} distinct texts were drawn, stratified by label.")
    sources = {split: f"{file} ({split})" for split in SPLITS}
    chosen = {split: [usable[row] for row in parts[split]] for split in SPLITS}
    return build_task(name, HEAD, chosen, sources, tuple(notes))


def _find(folder: Path) -> Path:
    places = [folder, *(folder / place / file for place in FOLDERS for file in FILES)]
    for place in places:
        if place.is_file():
            return place
    looked = "".join(f"\n  {place}" for place in places[1:])
    raise DataError(f"ppkm: no file was found. Looked in:{looked}\n{HOW_TO_GET}.")


def _read(file: Path) -> Iterator[Example]:
    """The rows, with labels by name; tweets in their original form are cleaned."""
    with opened(file) as lines:
        original = "\t" in lines.readline()
    column = "Tweet" if original else "cleaned_text"
    for where, row in read_csv(file, [column, "sentiment"], "\t" if original else ","):
        text = clean(row[column], Cleaning()) if original else row[column]
        code = check_label(row["sentiment"], CODES, where)
        yield Example(where, text, HEAD.labels[code])


def _usable(rows: list[Example]) -> list[Example]:
    labels = defaultdict(set)
    for row in rows:
        labels[row.first].add(row.answer)
    return [row for row in rows if str(row.first).strip() and len(labels[row.first]) == 1]


def _dropped(rows: list[Example], usable: list[Example]) -> str:
    empty = sum(not str(row.first).strip() for row in rows)
    conflicting = len(rows) - len(usable) - empty
    return (
        f"Left out: rows without text ({empty}), rows whose text has several labels "
        f"({conflicting})."
    )


def _smaller(
    parts: dict[str, np.ndarray], keys: np.ndarray, strata: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    """Rows of `size` distinct texts in all, the same share of them in each split."""
    shares = {"validation": SHARES.validation, "test": SHARES.test}
    shares["train"] = 1.0 - sum(shares.values())
    return {
        split: rows[draw(keys[rows], strata[rows], round(size * shares[split]))]
        for split, rows in parts.items()
    }
