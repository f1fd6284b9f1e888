"""The recurrent baselines: torch and NumPy agree, and the published failure is known."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from quantkit.data.vocabulary import train_vocabulary
from quantkit.errors import RecipeError
from quantkit.optimization import set_dropout
from quantkit.recurrent import Direction, RecurrentForSequenceClassification, build_recurrent
from quantkit.recurrent_slot import Recurrent
from tests.reference import recurrent as reference
from tests.small_recurrent import (
    LABELS,
    LIMIT,
    PADDED,
    ROWS,
    SLOTS,
    Rows,
    arrays_of,
    by_hand,
    every_slot,
    logits_of,
    make_model,
    make_words,
    random_rows,
    weights_of,
)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return make_words()


# The cells


def test_one_step_of_an_rnn_on_paper() -> None:
    """h1 = tanh(0.5 * 1 - 0.25 * 2 + 0.5) = tanh 0.5; h2 = tanh(0.5 * 3 + 2 * h1 + 0.5)."""
    cell = Direction("rnn", 2, 1, reverse=False)
    with torch.no_grad():
        cell.kernel.copy_(torch.tensor([[0.5, -0.25]]))
        cell.recurrent_kernel.fill_(2.0)
        cell.bias.fill_(0.5)
        states, last = cell(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), torch.tensor([2]))
    first = 0.46211716  # tanh 0.5
    second = np.tanh(2.0 + 2.0 * first)
    np.testing.assert_allclose(states[0, :, 0], [first, second], rtol=1e-6)
    np.testing.assert_allclose(last, [[second]], rtol=1e-6)
    values = (p.detach().numpy() for p in (cell.kernel, cell.recurrent_kernel, cell.bias))
    states = reference.run("rnn", np.array([[1.0, 2.0], [3.0, 0.0]]), *values)
    np.testing.assert_allclose(states[:, 0], [first, second], rtol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_direction_is_torchs_own_layer_with_one_bias(cell: str, reverse: bool) -> None:
    torch.manual_seed(0)
    ours = Direction(cell, 5, 4, reverse=reverse)
    ours.reset()
    theirs: Any = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell](5, 4, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.kernel)
        theirs.weight_hh_l0.copy_(ours.recurrent_kernel)
        theirs.bias_ih_l0.copy_(ours.bias)
        theirs.bias_hh_l0.zero_()
    x = torch.randn(3, 6, 5)
    found, last = ours(x, torch.full((3,), 6))
    expected, _ = theirs(x.flip(1) if reverse else x)
    expected = expected.flip(1) if reverse else expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, found[:, 0 if reverse else -1], rtol=0, atol=0)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_as_many_parameters_as_in_keras(words: PreTrainedTokenizerBase) -> None:
    assert count(Direction("lstm", 128, 64, reverse=False)) == 4 * ((128 + 64) * 64 + 64) == 49_408
    assert count(Direction("rnn", 128, 128, reverse=False)) == (128 + 128) * 128 + 128 == 32_896
    model = build_recurrent(Recurrent(), words, LABELS, max_length=9, padded_length=9)
    first, second = 2 * 49_408, 2 * 4 * ((128 + 32) * 32 + 32)  # Bidirectional of 64 and of 32
    assert count(model) == ROWS * 128 + first + second + 64 * 3 + 3


def test_initial_values_are_those_of_keras(words: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    model = build_recurrent(Recurrent(), words, LABELS, max_length=9, padded_length=9)
    table = weights_of(model)["recurrent.embeddings.word_embeddings.weight"]
    assert 0.0495 < np.abs(table).max() <= 0.05
    layer = weights_of(model)
    bias = layer["recurrent.layers.0.1.bias"].reshape(4, 64)
    assert bias.sum(1).tolist() == [0.0, 64.0, 0.0, 0.0]  # the forget gate is open
    bound = np.sqrt(6 / (128 + 4 * 64))
    assert 0.99 * bound < np.abs(layer["recurrent.layers.0.0.kernel"]).max() <= bound
    square = layer["recurrent.layers.0.0.recurrent_kernel"]
    np.testing.assert_allclose(square.T @ square, np.eye(64), atol=1e-5)
    assert not layer["classifier.bias"].any()


# The model


@every_slot
def test_torch_computes_what_numpy_computes(
    slot: Recurrent, words: PreTrainedTokenizerBase
) -> None:
    model, rows = make_model(slot, words), [[], [3], *random_rows(12, 1)]
    found = logits_of(model, arrays_of(rows))
    np.testing.assert_allclose(found, by_hand(slot, model, rows), atol=1e-6)


@every_slot
def test_neighbours_and_padding_change_nothing(
    slot: Recurrent, words: PreTrainedTokenizerBase
) -> None:
    """Whatever stands where the mask is 0, and however wide the batch is."""
    model, rows = make_model(slot, words), random_rows(6, 2)
    together = logits_of(model, arrays_of(rows))
    alone = np.concatenate([logits_of(model, arrays_of([row])) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    wide = logits_of(model, arrays_of(rows, extra=20, filler=7))
    np.testing.assert_allclose(together, wide, atol=1e-6)


def test_without_a_mask_every_token_is_read(words: PreTrainedTokenizerBase) -> None:
    model, row = make_model(SLOTS[2], words), [[3, 9, 0, 0]]
    ids = torch.tensor(row)
    with torch.no_grad():
        answer = model(input_ids=ids, token_type_ids=torch.zeros_like(ids))
    assert answer.loss is None
    np.testing.assert_allclose(answer.logits, by_hand(SLOTS[2], model, row), atol=1e-6)


def test_the_loops_dropout_reaches_both_layers(words: PreTrainedTokenizerBase) -> None:
    model = make_model(SLOTS[2], words)
    set_dropout(model, 0.4)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.4, 0.4]
    assert model.config.hidden_dropout_prob == 0.4
    arrays = arrays_of(random_rows(4, 3))
    assert np.array_equal(logits_of(model, arrays), logits_of(model, arrays))
    model.train()
    assert not np.array_equal(logits_of(model, arrays), logits_of(model, arrays))


@every_slot
def test_a_saved_folder_loads_back(
    slot: Recurrent, words: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = make_model(slot, words)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, RecurrentForSequenceClassification)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert list(loaded.config.id2label.values()) == list(LABELS)
    assert loaded.config.max_position_embeddings == LIMIT
    assert (loaded.config.padded_length, loaded.config.vocab_size) == (PADDED, ROWS)
    arrays = arrays_of(random_rows(4, 4))
    assert np.array_equal(logits_of(model, arrays), logits_of(loaded, arrays))
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == words.get_vocab()


def test_the_seed_decides_the_weights(words: PreTrainedTokenizerBase) -> None:
    first, second, third = (weights_of(make_model(SLOTS[4], words, seed=s)) for s in (5, 5, 6))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["classifier.weight"], third["classifier.weight"])


def test_what_a_slot_refuses(words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Recurrent(units=())
    with pytest.raises(ValidationError, match="at most 3 items"):
        Recurrent(units=(8, 8, 8, 8))
    with pytest.raises(ValidationError, match="'rnn' or 'lstm'"):
        Recurrent(cell="gru")  # type: ignore[arg-type]
    short = dict(max_length=20, padded_length=19)
    with pytest.raises(RecipeError, match="reads 19 tokens of each text, and max_length allows 20"):
        build_recurrent(Recurrent(padding="unmasked"), words, LABELS, **short)
    build_recurrent(Recurrent(), words, LABELS, **short)  # a masked model does not pad


# The published failure


def spread(logits: np.ndarray) -> float:
    """How far apart the answers to different texts are, over their size."""
    return float(np.ptp(logits, axis=0).max() / np.abs(logits).max())


def test_unmasked_padding_makes_one_direction_forget_the_text(
    words: PreTrainedTokenizerBase,
) -> None:
    """The same weights answer all texts alike behind a long padding, and apart without it."""
    arrays = arrays_of([[3, 4, 5], [9, 30], [17, 2, 21, 8, 8], [11]])
    spreads = {}
    for directions in (1, 2):
        for padding in ("masked", "unmasked"):
            slot = Recurrent(bidirectional=directions == 2, padding=padding)
            torch.manual_seed(0)
            model = build_recurrent(slot, words, LABELS, max_length=LIMIT, padded_length=128)
            model.train(False)
            spreads[directions, padding] = spread(logits_of(model, arrays))
    assert spreads[1, "unmasked"] < 1e-3
    assert spreads[1, "masked"] > 0.1
    # Read from right to left, the text stands behind the padding and is not forgotten.
    assert spreads[2, "unmasked"] > 0.1


# Training


def toy(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Sentences whose label is that of their last opinion, behind a text of other words."""
    random = np.random.default_rng(seed)
    opinions = (("enak", "bagus"), ("biasa", "lumayan"), ("buruk", "mahal"))
    texts, labels = [], []
    for _ in range(count):
        label, first = (int(number) for number in random.integers(0, 3, 2))
        filler = [f"kata{n}" for n in random.integers(0, 6, random.integers(1, 5))]
        both = [opinions[first][random.integers(2)], "tapi", opinions[label][random.integers(2)]]
        texts.append(" ".join([*filler, *both]))
        labels.append(label)
    return texts, labels


def trained(slot: Recurrent) -> tuple[RecurrentForSequenceClassification, PreTrainedTokenizerBase]:
    texts, labels = toy(96, 0)
    words = train_vocabulary(texts, slot.vocabulary)
    torch.manual_seed(0)
    model = build_recurrent(slot, words, LABELS, max_length=LIMIT, padded_length=PADDED)
    set_dropout(model, 0.1)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows: Rows = words(texts)["input_ids"]
    for _ in range(6):
        for start in range(0, len(rows), 16):
            batch: dict[str, Tensor] = {
                name: torch.from_numpy(values)
                for name, values in arrays_of(rows[start : start + 16]).items()
            }
            target = torch.tensor(labels[start : start + 16])
            answer = model(**batch, labels=target)
            assert torch.equal(answer.loss, F.cross_entropy(answer.logits, target))
            answer.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.train(False)
    return model, words


SMALL = Recurrent(units=(12, 8), embedding=16)


@pytest.mark.parametrize(
    "slot",
    [SMALL, replace(SMALL, padding="unmasked"), replace(SMALL, cell="rnn")],
    ids=["lstm", "unmasked", "rnn"],
)
def test_numpy_scores_what_the_framework_scores_to_every_digit(slot: Recurrent) -> None:
    model, words = trained(slot)
    texts, labels = toy(60, 1)
    rows: Rows = words(texts)["input_ids"]
    ours = by_hand(slot, model, rows)
    theirs = logits_of(model, arrays_of(rows))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    score = f1_score(labels, theirs.argmax(1), average="macro")
    assert f1_score(labels, ours.argmax(1), average="macro") == score
    assert score > 0.6


def test_training_twice_gives_the_same_bits() -> None:
    first, second = (weights_of(trained(replace(SMALL, units=(6,)))[0]) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_slot_needs_no_torch() -> None:
    program = "import sys, quantkit.recurrent_slot; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
