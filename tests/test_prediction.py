from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantkit.batching import Encoded, collate, encode, ordered_batches
from quantkit.data.tokenizer import train_wordpiece
from quantkit.errors import DataError
from quantkit.heads import Head
from quantkit.prediction import mean_loss, outputs_of, predict, predict_windows
from quantkit.tokenization import Inputs
from tests.training import (
    ASPECTS,
    CLASSES,
    FEATURES,
    MULTILABEL,
    REGRESSION,
    TRAINABLE,
    VALIDATION,
    WORDS,
    make_model,
    make_rows,
)

Rows = list[NDArray[np.float32]]


def alone(head: Head, rows: Encoded) -> Rows:
    """What the model of `head` says about each window, in a batch of its own."""
    model = make_model(head)
    found = []
    with torch.no_grad():
        for row in range(len(rows)):
            batch = collate(rows, [row], 0)
            batch.pop("labels")
            answer = model(**batch)
            values = answer.last_hidden_state if head.kind == "features" else answer.logits
            found.append(values[0].numpy())
    return found


@pytest.mark.parametrize("head", [CLASSES, ASPECTS, MULTILABEL, REGRESSION], ids=lambda h: h.kind)
def test_predictions_come_in_the_order_of_the_rows(head: Head) -> None:
    rows = make_rows(20, 1, head)
    found = predict(make_model(head), rows, pad_token_id=0, batch_size=3)
    assert isinstance(found, np.ndarray)
    assert (found.shape, str(found.dtype)) == ((20, head.outputs), "float32")
    np.testing.assert_allclose(found, np.stack(alone(head, rows)), rtol=0, atol=1e-5)
    assert np.ptp(found[:, 0]) > 1e-3  # or else any order would do


def test_words_come_without_special_tokens_and_padding() -> None:
    rows = make_rows(20, 1, WORDS)
    found = predict(make_model(WORDS), rows, pad_token_id=0, batch_size=7)
    assert isinstance(found, list)
    assert {row.dtype for row in found} == {np.dtype(np.float32)}
    for row, expected in zip(found, alone(WORDS, rows), strict=True):
        np.testing.assert_allclose(row, expected[1:-1], rtol=0, atol=1e-5)


def test_words_of_long_sentences_come_from_the_windows_that_answer_them() -> None:
    texts = [["mak", "e", "na", "k"] * 5, ["e"], ["kan", "mak"] * 7]
    tokenizer = train_wordpiece(["".join("maken") * 2], vocab_size=20)
    labels = [np.zeros(len(words), np.int64) for words in texts]
    rows = encode(tokenizer, Inputs(texts), WORDS, labels, 12)
    assert len(rows) > len(texts)
    found = predict(make_model(WORDS), rows, pad_token_id=0, batch_size=2)
    assert [len(row) for row in found] == [20, 1, 14]
    seen = 0
    assert rows.words is not None
    for window, expected in enumerate(alone(WORDS, rows)):
        for place, word in enumerate(rows.words[window]):
            if word >= 0:
                value = found[rows.sources[window]][word]
                np.testing.assert_allclose(value, expected[place], rtol=0, atol=1e-5)
                seen += 1
    assert seen == 35


def test_features_are_the_mean_over_the_tokens_and_not_over_padding() -> None:
    rows = make_rows(20, 1, FEATURES)
    assert len(set(rows.lengths())) > 3
    found = predict(make_model(FEATURES), rows, pad_token_id=0, batch_size=20)
    expected = np.stack([tokens.mean(0) for tokens in alone(FEATURES, rows)])
    assert isinstance(found, np.ndarray)
    assert (found.shape, str(found.dtype)) == ((20, 16), "float32")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_predicts_without_dropout(training: bool) -> None:
    model = make_model()
    model.train(training)
    found = [predict(model, VALIDATION, pad_token_id=0) for _ in range(2)]
    assert model.training == training
    assert np.array_equal(found[0], found[1])
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_share_of_the_batches_gives_its_windows_and_shares_add_up() -> None:
    model, batches = make_model(), ordered_batches(VALIDATION.lengths(), 3)
    shares = [predict_windows(model, VALIDATION, batches[at::2], 0) for at in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == list(range(20))
    assert set(shares[0]) == {row for batch in batches[::2] for row in batch}
    whole = predict(model, VALIDATION, pad_token_id=0, batch_size=3)
    assert np.array_equal(outputs_of(VALIDATION, shares[0] | shares[1]), whole)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows to predict"):
        predict(make_model(), make_rows(0, 0), pad_token_id=0)


def cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    shifted = logits - logits.max(-1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(-1))
    return np.asarray(log_sums - np.take_along_axis(shifted, labels[..., None], -1)[..., 0])


def expected_loss(head: Head, outputs: Any, references: Any) -> float:  # noqa: ANN401
    """The mean loss per label, in float64 and without torch."""
    if head.kind == "words":
        rows = zip(outputs, references, strict=True)
        return float(
            np.concatenate([cross_entropy(a.astype(np.float64), b) for a, b in rows]).mean()
        )
    x, y = outputs.astype(np.float64), np.asarray(references)
    if head.kind == "regression":
        return float(((x[:, 0] - y) ** 2).mean())
    if head.kind == "multilabel":
        return float((np.log1p(np.exp(x)) - x * y).mean())
    shape = (len(x), 2, 3) if head.kind == "aspects" else x.shape
    return float(cross_entropy(x.reshape(shape), y).mean())


@pytest.mark.parametrize("head", TRAINABLE, ids=lambda head: head.kind)
def test_the_mean_loss_is_that_of_all_labels(head: Head) -> None:
    rows = make_rows(20, 1, head)
    outputs = predict(make_model(head), rows, pad_token_id=0)
    expected = expected_loss(head, outputs, rows.references())
    assert mean_loss(rows, outputs) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


def test_the_mean_loss_takes_class_ids_of_any_width() -> None:
    outputs = predict(make_model(), VALIDATION, pad_token_id=0)
    narrow: Any = np.asarray(VALIDATION.labels).astype(np.int32)
    assert mean_loss(replace(VALIDATION, labels=narrow), outputs) == mean_loss(VALIDATION, outputs)
