"""Tokenized rows as safetensors, so that a machine without datasets and network can work on them.

ids int32 and, where a model takes them, types int8, one row behind the other; ends int64, one more
than rows; labels; sources int64, the dataset's row of each window; words int32, of word labellers.
The head stands in the file's metadata. And what a model says of all of them.
"""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from quantkit.batching import Encoded, collate, ordered_batches
from quantkit.files import read_json
from quantkit.heads import Head
from quantkit.prediction import Outputs, outputs_of
from quantkit.ragged import Ragged

__all__ = ["answers", "load_encoded", "padding_of", "save_encoded"]

BATCH = 32


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write one split."""
    arrays: dict[str, np.ndarray] = {
        "ids": _flat(encoded.ids),
        "ends": np.concatenate([[0], encoded.lengths().cumsum()]).astype(np.int64),
        "sources": np.asarray(encoded.sources),
    }
    for name in ("types", "words", "labels"):
        values = getattr(encoded, name)
        if values is not None:
            arrays[name] = _flat(values) if isinstance(values, Ragged) else np.asarray(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, metadata={"head": json.dumps(encoded.head.to_json())})


def load_encoded(path: Path) -> Encoded:
    """The inverse of `save_encoded`."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        head = Head.from_json(json.loads(file.metadata()["head"]))
    ends = arrays["ends"]

    def rows(name: str) -> Any:  # noqa: ANN401
        values = arrays.get(name)
        if values is None:
            return None
        parts = (values[a:b] for a, b in pairwise(ends.tolist()))
        return Ragged.of(parts, values.dtype.type)

    labels = rows("labels") if head.kind == "words" else arrays["labels"]
    return Encoded(head, rows("ids"), rows("types"), labels, arrays["sources"], rows("words"))


def answers(
    run: Callable[[Mapping[str, np.ndarray]], np.ndarray], texts: Encoded, padding: int
) -> Outputs:
    """What a model says of all rows, in their order, from batches of similar length.

    Args:
        run: int64 arrays [batch, length] -> float32 [batch, outputs]; of words
            [batch, length or more, labels].
        texts: tokenized rows.
        padding: the token id behind a text's end.
    """
    windows: dict[int, np.ndarray] = {}
    for places in ordered_batches(texts.lengths(), BATCH):
        batch = collate(texts, places, padding)
        arrays = {name: values.numpy() for name, values in batch.items() if name != "labels"}
        arrays.setdefault("token_type_ids", np.zeros_like(arrays["input_ids"]))
        for place, values in zip(places, run(arrays), strict=True):
            windows[place] = values if texts.words is None else values[: len(texts.ids[place])]
    return outputs_of(texts, windows)


def padding_of(folder: Path) -> int:
    """The token id behind a text's end, by a checkpoint's config.json."""
    return int(read_json(folder / "config.json").get("pad_token_id") or 0)


def _flat(rows: Ragged) -> np.ndarray:
    return np.concatenate([rows[at] for at in range(len(rows))])
