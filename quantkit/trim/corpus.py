"""What a tokenizer makes of a corpus: the tokens in it, and what a smaller vocabulary changes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from quantkit.errors import CheckpointError
from quantkit.tokenization import CHUNK, Inputs
from quantkit.trim.pieces import pieces_of

__all__ = ["Change", "change", "count_same_tokens", "seen_tokens"]

Row = str | Sequence[str]  # a text, or words


@dataclass(frozen=True)
class Change:
    """How texts are split by a smaller vocabulary and were by the whole one.

    texts             measured
    same              share of the tokens that stood in words which are split as before
    unknown           share of unknown tokens, before and after
    pieces            mean tokens of a word, before and after; words as the pre-tokenizer has them
    """

    texts: int
    same: float
    unknown: tuple[float, float]
    pieces: tuple[float, float]


def seen_tokens(
    backend: Tokenizer, inputs: Inputs, *, words: bool, chosen: Callable[[int], bool]
) -> set[str]:
    """The tokens that texts are made of, without those that a template puts around them.

    Texts are not cut. A word that ends as an unknown token adds the tokens on the way there.

    Args:
        backend: it neither cuts nor pads.
        inputs: all rows; both texts of pairs are read.
        words: whether rows are lists of words.
        chosen: of a row's number from 0, whether it is read.
    """
    model = json.loads(backend.to_str())["model"]
    unknown = _unknown_id(backend)
    seen: set[int] = set()
    stuck: set[str] = set()
    for at, row, encoding in _encodings(backend, inputs, words=words):
        if chosen(at):
            seen.update(encoding.ids)
            if unknown in encoding.ids:
                stuck.update(_words_of(backend, row))
    passed = (pieces_of(model).passed(model, word) for word in stuck)
    found = {token for token, number in backend.get_vocab().items() if number in seen}
    return found.union(*passed)


def count_same_tokens(
    before: Tokenizer, after: Tokenizer, rows: Sequence[int], inputs: Inputs, *, words: bool
) -> int:
    """How many tokens the texts have, when both tokenizers make the very same of each text.

    Args:
        before: with the whole vocabulary; neither of them cuts or pads.
        after: with a part of it.
        rows: for each id of `after`, its id before.
        inputs: as for `seen_tokens`.
        words: likewise.

    Raises:
        CheckpointError: a text is split otherwise than before.
    """
    tokens = 0
    for (at, row, old), (_, _, new) in _both(before, after, inputs, words=words):
        tokens += len(old.ids)
        if [rows[number] for number in new.ids] != old.ids:
            raise CheckpointError(
                f"With the smaller vocabulary training row {at + 1} ({str(row)!r:.60}) is split "
                f"into other tokens than before, so this tokenizer cannot be trimmed to a corpus. "
                f"Write `embeddings: {{trim: true}}`."
            )
    return tokens


def change(
    before: Tokenizer, after: Tokenizer, rows: Sequence[int], inputs: Inputs, *, words: bool
) -> Change:
    """Compare how texts are split; the arguments are those of `count_same_tokens`."""
    unknown, count = _unknown_id(before), Counter[str]()
    for (_, _, old), (_, _, new) in _both(before, after, inputs, words=words):
        was, now = old.ids, [rows[number] for number in new.ids]
        parts, parts_now = _by_word(old, was), _by_word(new, now)
        count["words"] += len(parts)
        count["same"] += sum(len(p) for word, p in parts.items() if parts_now.get(word) == p)
        for when, ids in (("before", was), ("after", now)):
            count[when] += len(ids)
            count[f"unknown {when}"] += sum(number == unknown for number in ids)
    share = {name: count[name] / max(count["words"], 1) for name in ("before", "after")}
    return Change(
        texts=len(inputs),
        same=count["same"] / max(count["before"], 1),  # texts may hold nothing
        unknown=(
            count["unknown before"] / max(count["before"], 1),
            count["unknown after"] / max(count["after"], 1),
        ),
        pieces=(share["before"], share["after"]),
    )


def _encodings(
    backend: Tokenizer, inputs: Inputs, *, words: bool
) -> Iterator[tuple[int, Row, Encoding]]:
    """Each text's number, itself, and its tokens; all first texts, then all second ones."""
    columns = [inputs.first, *([] if inputs.second is None else [inputs.second])]
    for column in columns:
        for start in range(0, len(column), CHUNK):
            chunk: list[Row] = list(column[start : start + CHUNK])
            encoded = backend.encode_batch(chunk, is_pretokenized=words, add_special_tokens=False)
            yield from zip(range(start, start + len(chunk)), chunk, encoded, strict=True)


def _both(
    before: Tokenizer, after: Tokenizer, inputs: Inputs, *, words: bool
) -> Iterator[tuple[tuple[int, Row, Encoding], tuple[int, Row, Encoding]]]:
    """`_encodings` of two tokenizers, side by side."""
    return zip(
        _encodings(before, inputs, words=words), _encodings(after, inputs, words=words), strict=True
    )


def _by_word(encoding: Encoding, ids: Sequence[int]) -> dict[int, list[int]]:
    """The tokens of each word that the pre-tokenizer made, as `ids`."""
    found: dict[int, list[int]] = {}
    for word, number in zip(encoding.word_ids, ids, strict=True):
        if word is not None:
            found.setdefault(word, []).append(number)
    return found


def _words_of(backend: Tokenizer, row: Row) -> Iterator[str]:
    """A row as its tokenizer's model sees it."""
    for text in [row] if isinstance(row, str) else row:
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is None:
            yield normal
        else:
            yield from (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))


def _unknown_id(backend: Tokenizer) -> int | None:
    """The id of what a tokenizer does not know, if it has one."""
    model = json.loads(backend.to_str())["model"]
    if "unk_id" in model:
        return None if model["unk_id"] is None else int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else backend.token_to_id(token)
