"""A tokenizer with some of another one's tokens, numbered anew."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from quantkit.batching import backend_of
from quantkit.errors import CheckpointError
from quantkit.trim.pieces import Json, pieces_of

__all__ = ["plain_backend", "renumbered", "restrict", "special_ids"]


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the `tokenizers` library's tokenizer that neither cuts nor pads.

    Raises:
        CheckpointError: a tokenizer without one.
    """
    backend = backend_of(tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return backend


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of tokens that have a meaning of their own: special, added, padding, the template's."""
    padding = backend_of(tokenizer).padding
    backend = plain_backend(tokenizer)
    template = {*backend.encode("").ids, *backend.encode("", "").ids}
    return {
        *template,
        *backend.get_added_tokens_decoder(),
        *tokenizer.all_special_ids,
        *([] if padding is None else [int(padding["pad_id"])]),
    }


def restrict(tokenizer: PreTrainedTokenizerBase, rows: Sequence[int]) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens of ids `rows`, which get their places in it as new ids.

    Normalizer, pre-tokenizer, truncation and the class stay. It is read back from files, so that it
    is what a saved folder's tokenizer will be.

    Args:
        tokenizer: a fast one, which stays as it is.
        rows: ascending; among them whatever `special_ids` and `pieces.needed` name.

    Raises:
        CheckpointError: a model or a post-processor of an unknown type, or ids that the library
            will not give as planned.
    """
    backend: Any = tokenizer.backend_tokenizer
    ids = renumbered(backend.get_vocab(), rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        _leave_only_json(folder)
        values = _restricted(json.loads(backend.to_str()), ids, rows)
        (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
        result: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    result.name_or_path = tokenizer.name_or_path
    if result.get_vocab() != ids:
        raise CheckpointError(
            f"The tokenizer cannot be numbered anew: of {len(ids)} tokens it then has "
            f"{len(result.get_vocab().items() & ids.items())} with the ids they should have (added "
            f"tokens among the others, or a token twice). Write `embeddings: {{trim: true}}`."
        )
    return result


def renumbered(vocabulary: Mapping[str, int], rows: Sequence[int]) -> dict[str, int]:
    """The tokens of ids `rows`, each with its place in `rows`."""
    new = {old: at for at, old in enumerate(rows)}
    return {token: new[old] for token, old in vocabulary.items() if old in new}


def _leave_only_json(folder: Path) -> None:
    """Remove the files that hold the old vocabulary or its ids."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("added_tokens_decoder", None)  # of transformers 4, by old ids
    path.write_text(json.dumps(config), encoding="utf-8")


def _restricted(values: Json, ids: Mapping[str, int], rows: Sequence[int]) -> Json:
    """The mapping of a tokenizer.json with new ids everywhere."""
    new = {old: at for at, old in enumerate(rows)}
    model = pieces_of(values["model"]).restricted(values["model"], ids)
    added = [{**token, "id": new[token["id"]]} for token in values["added_tokens"]]
    processor, padding = values["post_processor"], values["padding"]
    return {
        **values,
        "model": model,
        "added_tokens": added,
        "post_processor": None if processor is None else _processor(processor, new),
        "padding": None if padding is None else {**padding, "pad_id": new[padding["pad_id"]]},
    }


def _processor(values: Json, new: Mapping[int, int]) -> Json:
    """A post-processor with the new ids of the tokens that it adds."""
    kind = values["type"]
    if kind == "Sequence":
        return {**values, "processors": [_processor(part, new) for part in values["processors"]]}
    if kind == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [new[old] for old in token["ids"]]}
            for name, token in values["special_tokens"].items()
            if all(old in new for old in token["ids"])  # others are not in the template
        }
        return {**values, "special_tokens": tokens}
    if kind in ("BertProcessing", "RobertaProcessing"):
        ends = {part: [values[part][0], new[values[part][1]]] for part in ("sep", "cls")}
        return {**values, **ends}
    if kind == "ByteLevel":
        return values
    raise CheckpointError(
        f"The tokenizer.json has a post-processor of the type {kind}, whose ids quantkit "
        f"cannot renumber. Write `embeddings: {{trim: true}}`, which leaves the tokenizer as it is."
    )
