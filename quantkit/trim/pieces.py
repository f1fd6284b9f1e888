"""Which tokens a smaller vocabulary needs, and the tokenizer's model made of them.

A model is the mapping at `model` of a tokenizer.json, of the type WordPiece, BPE or Unigram.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import CheckpointError

__all__ = ["Json", "Pieces", "pieces_of"]

Json = dict[str, Any]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what stands for a byte where `byte_fallback` is on


@dataclass(frozen=True)
class Pieces:
    """What one type of model says of its tokens.

    needed      of the model and the tokens that texts hold: these, and all without which the
                same texts would be split otherwise or unseen words could not be split at all
    restricted  the model with some of its tokens and their new ids
    passed      of the model and a word: tokens that its tokenization takes on the way to an
                unknown token; without them it might find another way, and a known end
    """

    needed: Callable[[Json, set[str]], set[str]]
    restricted: Callable[[Json, Mapping[str, int]], Json]
    passed: Callable[[Json, str], Iterator[str]]


def pieces_of(model: Json) -> Pieces:
    """The rules of a model's type.

    Raises:
        CheckpointError: a type that cannot be restricted to some of its tokens.
    """
    kind = str(model.get("type"))
    if kind not in _KINDS:
        raise CheckpointError(
            f"The tokenizer.json has a model of the type {kind}, and quantkit removes tokens of "
            f"{', '.join(_KINDS)} only. Write `embeddings: {{trim: true}}`, which leaves the "
            f"tokenizer as it is."
        )
    return _KINDS[kind]


def _wordpiece_needed(model: Json, seen: set[str]) -> set[str]:
    prefix = model["continuing_subword_prefix"]
    alphabet = {token for token in model["vocab"] if len(token.removeprefix(prefix)) == 1}
    return seen | alphabet | {model["unk_token"]}


def _wordpiece_passed(model: Json, word: str) -> Iterator[str]:
    """The longest match at each place, until there is none."""
    vocabulary, start = model["vocab"], 0
    while start < len(word):
        prefix = model["continuing_subword_prefix"] if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return
        yield prefix + word[start:end]
        start = end


def _bpe_needed(model: Json, seen: set[str]) -> set[str]:
    """Also the parts that tokens are merged from, and the parts of these."""
    sources: dict[str, list[str]] = {}
    for first, second, result in _merges(model):
        sources.setdefault(result, []).extend((first, second))
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    needed = {
        token
        for token in model["vocab"]
        if len(token.removeprefix(prefix).removesuffix(suffix)) == 1 or _is_byte(model, token)
    }
    open_ones = [*seen, *([model["unk_token"]] if model.get("unk_token") else [])]
    while open_ones:
        token = open_ones.pop()
        if token not in needed:
            open_ones += sources.get(token, ())
        needed.add(token)
    return needed


def _bpe_restricted(model: Json, ids: Mapping[str, int]) -> Json:
    merges = [
        [first, second]
        for first, second, result in _merges(model)
        if first in ids and second in ids and result in ids
    ]
    return {**_restricted(model, ids), "merges": merges}


def _merges(model: Json) -> Iterator[tuple[str, str, str]]:
    """Both parts and the result of each merge; older files write the parts as one string."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second, first + second.removeprefix(prefix)


def _unigram_needed(model: Json, seen: set[str]) -> set[str]:
    """Also the piece of the least score, from which the score of an unknown one is counted."""
    scores = dict(model["vocab"])
    alphabet = {piece for piece in scores if len(piece) == 1 or _is_byte(model, piece)}
    needed = seen | alphabet | {min(scores, key=scores.__getitem__)}
    return needed if model["unk_id"] is None else needed | {model["vocab"][model["unk_id"]][0]}


def _unigram_restricted(model: Json, ids: Mapping[str, int]) -> Json:
    """A list, in which a piece's place is its id."""
    vocabulary = sorted(
        (pair for pair in model["vocab"] if pair[0] in ids), key=lambda p: ids[p[0]]
    )
    unknown = model["unk_id"]
    if unknown is not None:
        unknown = ids[model["vocab"][unknown][0]]
    return {**model, "vocab": vocabulary, "unk_id": unknown}


def _restricted(model: Json, ids: Mapping[str, int]) -> Json:
    return {**model, "vocab": {token: ids[token] for token in model["vocab"] if token in ids}}


def _is_byte(model: Json, token: str) -> bool:
    return bool(model.get("byte_fallback")) and _BYTE.fullmatch(token) is not None


def _nothing(model: Json, word: str) -> Iterator[str]:
    """An unknown character stands for itself: no other token has a part in it."""
    del model, word
    return iter(())


_KINDS = {
    "WordPiece": Pieces(_wordpiece_needed, _restricted, _wordpiece_passed),
    "BPE": Pieces(_bpe_needed, _bpe_restricted, _nothing),
    "Unigram": Pieces(_unigram_needed, _unigram_restricted, _nothing),
}
