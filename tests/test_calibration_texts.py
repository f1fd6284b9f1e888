"""Counting the tokens that a 4-bit word table has to serve."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from quantkit import calibration_texts
from quantkit.calibration_texts import word_counts
from quantkit.checkpoint import load_float
from quantkit.pipeline import ptq_checkpoint
from quantkit.recipe import Recipe
from quantkit.slots import Calibration, Embeddings
from quantkit.tokenization import Inputs
from tests.cli import checkpoint, feelings

TEXTS = [text for text, _ in feelings()]


def test_tokens_are_counted_as_the_model_reads_them(base: Path) -> None:
    """With special tokens, and cut."""
    model, tokenizer = load_float(checkpoint(base))
    counts = word_counts(model, tokenizer, Inputs(TEXTS), 5)
    rows = tokenizer(TEXTS, truncation=True, max_length=5)["input_ids"]
    expected = Counter(token for row in rows for token in row)
    assert len(counts) == len(tokenizer)
    assert counts.dtype == torch.int64
    assert {token: int(n) for token, n in enumerate(counts) if n} == expected
    assert counts[tokenizer.cls_token_id] == len(TEXTS)


def test_of_very_many_texts_some_are_counted(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_texts, "COUNTED_TEXTS", 100)
    model, tokenizer = load_float(checkpoint(base))
    counts = word_counts(model, tokenizer, Inputs(TEXTS), 32)
    assert torch.equal(counts, word_counts(model, tokenizer, Inputs(TEXTS[::3]), 32))


def test_the_most_frequent_words_of_all_texts_keep_eight_bits(base: Path, tmp_path: Path) -> None:
    """Not those of the few that are calibrated on."""
    folder = checkpoint(base)
    model, tokenizer = load_float(folder)
    recipe = Recipe(
        name="t",
        task="none",
        model="none",
        calibration=Calibration(samples=2),
        embeddings=Embeddings(bits=4, frequent=12),
    )
    made = ptq_checkpoint(recipe, folder, Inputs(TEXTS), tmp_path / "w8a8")
    table = made.quantized.model.get_input_embeddings()
    counts = word_counts(model, tokenizer, Inputs(TEXTS), 32)
    assert table.frequent_rows.tolist() == counts.topk(12).indices.sort().values.tolist()
