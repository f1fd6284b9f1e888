"""A tokenizer's files do not depend on how it was called before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

import quantkit
from quantkit.checkpoint import save_float
from quantkit.packed import save_packed
from quantkit.ptq import quantize
from quantkit.tokenizer_files import save_tokenizer
from tests.conftest import ROWS, batch_of

Save = Callable[[BertForSequenceClassification, PreTrainedTokenizerBase, Path], object]


def _save_packed(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    made = quantize(model, [batch_of(2, 8)], reachable_rows=ROWS)
    save_packed(made, tokenizer, folder, max_length=16)


SAVES: dict[str, Save] = {
    "the tokenizer": lambda _, tokenizer, folder: save_tokenizer(tokenizer, folder),
    "a float folder": save_float,
    "a packed one": _save_packed,
    "an exported one": quantkit.export,
}


@pytest.mark.parametrize("name", SAVES)
def test_truncation_and_padding_of_a_call_are_not_written_down(
    name: str,
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    tokenizer("makanannya enak sekali", truncation=True, max_length=4, padding="max_length")
    SAVES[name](model, tokenizer, tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (values["truncation"], values["padding"]) == (None, None)
    own = json.loads(tokenizer.backend_tokenizer.to_str())
    assert own["truncation"] is not None  # the tokenizer itself is left as it is
    assert {**own, "truncation": None, "padding": None} == values
