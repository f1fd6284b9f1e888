"""Splits by distinct text: no text stands in two of them.

A text's place in the order of drawing is a hash of the text and the seed. It depends neither
on the order of the rows nor on a random number generator, so that the same texts are split
alike in every run and on every platform.
"""

import hashlib

import numpy as np

from quantkit.errors import DataError
from quantkit.source import Split

__all__ = ["carve", "draw", "first_of_each", "split_rows", "text_key"]


def text_key(text: str, seed: int = 0) -> int:
    """Eight bytes that stand for the text, and for its place in the order of drawing."""
    salt = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "little")


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """Whether each row is the first one with its key: bool [rows] of uint64 [rows]."""
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def split_rows(keys: np.ndarray, strata: np.ndarray, split: Split) -> dict[str, np.ndarray]:
    """The row numbers of train, validation and test, in ascending order.

    In each part, every stratum's number of distinct texts differs by less than one from its
    share of the part. A split.validation of 0 gives an empty validation part.

    Args:
        keys: uint64 [rows]; rows with equal keys hold the same text and stay together.
        strata: int64 [rows]; a text belongs to the stratum of its first row.
        split: the shares.

    Raises:
        DataError: the shares leave nothing for train.
    """
    if split.validation + split.test >= 1.0:
        raise DataError(
            f"data.split: validation {split.validation} and test {split.test} leave no share "
            f"for train. Lower one of them."
        )
    texts, stratum, inverse = _distinct(keys, strata)
    sizes = np.bincount(stratum)
    test = _apportion(sizes, _part(len(texts), split.test), sizes)
    validation = _apportion(sizes, _part(len(texts), split.validation), sizes - test)
    rank = _rank(stratum)
    part = (rank < test[stratum]) + (rank < (test + validation)[stratum]).astype(np.int64)
    of_rows = part[inverse]
    names = {"train": 0, "validation": 1, "test": 2}
    return {name: np.flatnonzero(of_rows == at) for name, at in names.items()}


def carve(keys: np.ndarray, strata: np.ndarray, share: float) -> np.ndarray:
    """Whether each row belongs to a part of the distinct texts, stratified: bool [rows]."""
    texts, stratum, inverse = _distinct(keys, strata)
    sizes = np.bincount(stratum)
    taken = _apportion(sizes, _part(len(texts), share), sizes)
    return np.asarray((_rank(stratum) < taken[stratum])[inverse])


def draw(keys: np.ndarray, strata: np.ndarray, size: int) -> np.ndarray:
    """The rows of `size` distinct texts, stratified; the first row of each, in their order."""
    first = np.flatnonzero(first_of_each(keys))
    texts, stratum, inverse = _distinct(keys[first], strata[first])
    sizes = np.bincount(stratum)
    taken = _apportion(sizes, min(size, len(texts)), sizes)
    return np.asarray(first[(_rank(stratum) < taken[stratum])[inverse]])


def _distinct(keys: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted distinct keys [texts], their strata [texts], and the text of each row [rows]."""
    texts, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return texts, strata[first], inverse


def _rank(stratum: np.ndarray) -> np.ndarray:
    """The place of each text among those of its stratum: int64 [texts]."""
    order = np.argsort(stratum, kind="stable")
    ends = np.cumsum(np.bincount(stratum))
    starts = ends - np.bincount(stratum)
    rank = np.empty(len(stratum), dtype=np.int64)
    rank[order] = np.arange(len(stratum)) - starts[stratum[order]]
    return rank


def _part(texts: int, share: float) -> int:
    return max(1, round(texts * share)) if share else 0


def _apportion(sizes: np.ndarray, total: int, room: np.ndarray) -> np.ndarray:
    """`total` shared out in proportion to `sizes`, by largest remainder.

    No stratum gets more than its `room`; the result sums to less than `total` where that
    leaves too few strata for the remainders.
    """
    everything = int(sizes.sum())
    if not everything:
        return np.zeros_like(sizes)
    counts: np.ndarray = np.minimum(sizes * total // everything, room)
    remainders = np.where(counts < room, sizes * total % everything, 0)
    missing = min(total - int(counts.sum()), int(np.count_nonzero(remainders)))
    # The emptier of two strata with equal remainders comes last.
    counts[np.lexsort((-room, -remainders))[:missing]] += 1
    return counts
