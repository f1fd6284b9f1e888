"""SmSA's test texts as token ids with their lengths as they are, for `cpu_latency.py`."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from quantkit.data import load_task
from quantkit.files import new_file

__all__ = ["write_texts"]

LIMIT = 512  # tokens
# Without the data: lengths of a log-normal with about SmSA's median of 30 and its long tail.
MEDIAN, SPREAD, LEAST_ROW = 30, 0.7, 5


def write_texts(work: Path, data: Path | None, tokenizer: Path | None, count: int) -> Path:
    """Write `smsa.npz`, or `generated.npz` without data or tokenizer: `input_ids`, `offsets`."""
    if data is None or tokenizer is None:
        rng = np.random.default_rng(0)
        lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), SPREAD, count)), 3, LIMIT).astype(int)
        rows = [np.full(length, LEAST_ROW) for length in lengths]
        return _write(work / "generated.npz", rows)
    words = AutoTokenizer.from_pretrained(tokenizer)
    texts = load_task("smsa", data).splits["test"]["text"][:count]
    rows = [np.array(words(text, truncation=True, max_length=LIMIT).input_ids) for text in texts]
    return _write(work / "smsa.npz", rows)


def _write(path: Path, rows: list[np.ndarray]) -> Path:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    ids = np.concatenate(rows).astype(np.int64)
    with new_file(path) as partial, partial.open("wb") as file:
        np.savez(file, input_ids=ids, offsets=offsets)
    return path
