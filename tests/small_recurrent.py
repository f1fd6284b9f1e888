"""Small recurrent models and rows of token ids that the tests of model and file share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from quantkit.data.vocabulary import train_vocabulary
from quantkit.recurrent import RecurrentForSequenceClassification, build_recurrent
from quantkit.recurrent_slot import Recurrent
from tests.reference import recurrent as reference

LABELS = ("positive", "neutral", "negative")
LIMIT, PADDED = 12, 16  # tokens of a text, and what an unmasked model reads
ROWS = 40
SLOTS = [
    Recurrent("rnn", (5,), bidirectional=False, embedding=7),
    Recurrent("rnn", (6, 4), bidirectional=True, embedding=7),
    Recurrent("lstm", (5,), bidirectional=True, embedding=7),
    Recurrent("lstm", (6, 5, 4), bidirectional=False, embedding=7),
    Recurrent("lstm", (6, 5, 4), bidirectional=True, embedding=7),
]
SLOTS += [replace(slot, padding="unmasked") for slot in SLOTS]
every_slot = pytest.mark.parametrize(
    "slot", SLOTS, ids=lambda s: f"{s.cell}-{len(s.units)}-{s.bidirectional}-{s.padding}"
)

Rows = list[list[int]]


def make_words() -> PreTrainedTokenizerBase:
    return train_vocabulary([" ".join(f"kata{at:02}" for at in range(ROWS - 2))], ROWS)


def make_model(
    slot: Recurrent, words: PreTrainedTokenizerBase, *, seed: int = 0, noise: float = 0.3
) -> RecurrentForSequenceClassification:
    """A model in eval mode whose weights, biases included, are far from their initial ones."""
    torch.manual_seed(seed)
    model = build_recurrent(slot, words, LABELS, max_length=LIMIT, padded_length=PADDED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    model.train(False)
    return model


def random_rows(count: int, seed: int, longest: int = LIMIT) -> Rows:
    random = np.random.default_rng(seed)
    return [
        random.integers(0, ROWS, random.integers(0, longest + 1)).tolist() for _ in range(count)
    ]


def arrays_of(rows: Rows, extra: int = 0, filler: int = 0) -> dict[str, np.ndarray]:
    """The rows as one batch, `extra` columns wider than it need be, behind them `filler`."""
    width = max(map(len, rows)) + extra
    filled = [row + [filler] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {
        "input_ids": np.array(filled, dtype=np.int64).reshape(len(rows), width),
        "attention_mask": np.array(mask, dtype=np.int64).reshape(len(rows), width),
    }


def logits_of(model: nn.Module, arrays: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        answer = model(**{name: torch.from_numpy(values) for name, values in arrays.items()})
    logits: np.ndarray = answer.logits.numpy()
    return logits


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in model.state_dict().items()}


def by_hand(slot: Recurrent, model: nn.Module, rows: Rows) -> np.ndarray:
    padded = PADDED if slot.padding == "unmasked" else None
    return reference.classify(weights_of(model), slot.cell, rows, padded)
