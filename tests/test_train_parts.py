"""What changes how a run is made, and must not change what it learns; and when it stops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantkit.batching import Encoded, collate
from quantkit.errors import RecipeError
from quantkit.heads import Head
from quantkit.losses import loss_sum
from quantkit.optimization import lr_factor
from quantkit.ragged import Ragged
from quantkit.train import CURVE_POINTS, TrainingResult
from tests.training import (
    SETTINGS,
    STEPS,
    TRAIN,
    TRAINABLE,
    WORDS,
    Killed,
    assert_same_bits,
    kill_at,
    largest_difference,
    make_model,
    make_rows,
    rising,
    run,
    without_seconds,
)

PLAIN = replace(SETTINGS, dropout=0.0)  # with dropout, other parts would draw other masks


def accumulated(head: Head, parts: int) -> tuple[nn.Module, TrainingResult]:
    model = make_model(head)
    train, validation = make_rows(30, 0, head), make_rows(20, 1, head)
    options: dict[str, Any] = {"train": train, "validation": validation, "score": rising()}
    return model, run(model, settings=replace(PLAIN, accumulation=parts), **options)


@pytest.fixture(scope="module", params=TRAINABLE, ids=lambda head: head.kind)
def whole(request: pytest.FixtureRequest) -> tuple[Head, nn.Module, TrainingResult]:
    return request.param, *accumulated(request.param, 1)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_batches_in_parts_give_the_same_weights_and_losses(
    parts: int, whole: tuple[Head, nn.Module, TrainingResult]
) -> None:
    """Neither the 8 rows of a batch nor the 6 of an epoch's last make 5 parts of one size."""
    head, model, result = whole
    other, again = accumulated(head, parts)
    difference, name = largest_difference(model, other)
    assert difference < 1e-5, name
    for key in ("train_loss", "validation_loss"):
        losses = [entry[key] for entry in again.history]
        assert losses == pytest.approx([entry[key] for entry in result.history], rel=1e-6)
    assert len(again.curve) == len(result.curve) == STEPS


def test_parts_have_the_rows_of_the_batch_and_no_more() -> None:
    model, sizes = make_model(), list[int]()

    def look(module: nn.Module, _: object, batch: dict[str, Tensor]) -> None:
        if module.training:
            sizes.append(len(batch["input_ids"]))

    model.register_forward_pre_hook(look, with_kwargs=True)
    settings = replace(PLAIN, epochs=1, batch_size=20, accumulation=3)
    run(model, settings=settings)
    assert sorted(sizes) == [3, 3, 4, 6, 7, 7]  # 30 rows: of the batches of 20 and 10
    sizes.clear()
    run(model, settings=replace(settings, batch_size=30, accumulation=99))
    assert sizes == [1] * 30


def part_sum(model: nn.Module, rows: Encoded, indices: list[int]) -> Tensor:
    batch = collate(rows, indices, 0)
    labels = batch.pop("labels")
    return loss_sum(rows.head, model(**batch).logits, labels)


def test_words_are_weighed_by_their_number_and_not_by_that_of_their_parts() -> None:
    """Two rows, one of which has many words: a mean of the parts' means would be another."""
    rows = make_rows(30, 0, WORDS)
    by_labels = sorted(range(30), key=lambda row: rows.count([row]))
    pair = [by_labels[0], by_labels[-1]]
    assert [rows.count([row]) for row in pair] == [1, 10]
    model = make_model(WORDS)
    with torch.no_grad():
        few, many = (float(part_sum(model, rows, [row])) for row in pair)
    right, wrong = (few + many) / 11, (few / 1 + many / 10) / 2
    assert abs(right - wrong) > 0.1
    two: dict[str, Any] = {
        name: Ragged.of([getattr(rows, name)[row] for row in pair], np.int32)
        for name in ("ids", "types", "labels", "words")
    }
    batch = replace(rows, sources=np.arange(2), **two)
    settings = replace(PLAIN, epochs=1, batch_size=2, accumulation=2)
    result = run(model, settings=settings, train=batch, validation=batch)
    assert result.history[0]["train_loss"] == pytest.approx(right, rel=1e-6)
    assert result.curve[0]["loss"] == pytest.approx(right, rel=1e-6)


def test_the_gradient_of_words_in_parts_is_that_of_their_mean() -> None:
    rows = make_rows(30, 0, WORDS)
    model, gradients = make_model(WORDS), list[Tensor]()
    weight = model.get_parameter("classifier.weight")
    mean = part_sum(model, rows, list(range(30))) / rows.count(range(30))
    (expected,) = torch.autograd.grad(mean, [weight])
    weight.register_hook(lambda gradient: gradients.append(gradient.clone()))
    settings = replace(PLAIN, epochs=1, batch_size=30, accumulation=4)
    run(model, settings=settings, train=rows, validation=rows)
    assert len(gradients) == 4
    torch.testing.assert_close(torch.stack(gradients).sum(0), expected, rtol=1e-5, atol=1e-7)


def test_activations_computed_twice_give_the_same_bits_with_dropout_too() -> None:
    once, twice = make_model(), make_model()
    names = set(vars(twice))
    expected = run(once)
    result = run(twice, settings=replace(SETTINGS, checkpointing=True))
    assert_same_bits(once, twice)
    assert without_seconds(result) == without_seconds(expected)
    # And leave no trace: neither switched on nor with a hook that asks for gradients.
    assert not any(getattr(module, "gradient_checkpointing", False) for module in twice.modules())
    assert not any(module._forward_hooks for module in twice.modules())
    assert {name for name in vars(twice) if not name.startswith("_require_grads")} == names


def test_checkpointing_does_compute_activations_twice() -> None:
    calls = []
    for checkpointing in (False, True):
        model, seen = make_model(layers=1), list[bool]()
        layer = model.get_submodule("bert.encoder.layer.0.intermediate")
        layer.register_forward_hook(lambda module, *_: seen.append(module.training))  # noqa: B023
        run(model, settings=replace(SETTINGS, epochs=1, checkpointing=checkpointing))
        calls.append(sum(seen))
    assert calls == [4, 8]


class Bare(nn.Module):
    """A model that is not of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model()

    def forward(self, **batch: Tensor) -> object:
        return self.inner(**batch)


def test_a_model_that_cannot_checkpoint_says_so_and_trains_without() -> None:
    with pytest.raises(RecipeError, match="a Bare cannot compute its activations twice"):
        run(Bare(), settings=replace(SETTINGS, checkpointing=True))
    model, wrapped = make_model(), Bare()
    run(model)
    run(wrapped)
    assert_same_bits(model, wrapped.inner)


# Epochs' scores, patience; the epochs that are made, the best of them, whether it was early.
STOPS = [
    ((0.1, 0.2, 0.3, 0.4), 1, 4, 4, False),
    ((0.5, 0.5, 0.9, 0.9), 1, 2, 1, True),  # an equal score is no better one
    ((0.5, 0.4, 0.6, 0.3), 2, 4, 3, False),
    ((0.5, 0.4, 0.3, 0.9), 2, 3, 1, True),
    ((0.1, 0.9, 0.3, 0.4), 2, 4, 2, False),  # stops where it ends anyway
    ((0.9, 0.1, 0.1, 0.1), None, 4, 1, False),
]


@pytest.mark.parametrize(("scores", "patience", "epochs", "best", "early"), STOPS)
def test_a_run_stops_after_so_many_epochs_without_a_better_one(
    scores: tuple[float, ...], patience: int | None, epochs: int, best: int, early: bool
) -> None:
    settings = replace(SETTINGS, epochs=4, patience=patience)
    values = iter(scores)
    result = run(make_model(), settings=settings, score=lambda *_: next(values))
    assert (len(result.history), result.best_epoch) == (epochs, best)
    assert (result.steps, result.stopped_early) == (4 * epochs, early)


def test_the_curve_shows_every_step_of_a_short_run() -> None:
    result = run(make_model())
    assert [point["step"] for point in result.curve] == list(range(1, STEPS + 1))
    rates = [point["lr"] for point in result.curve]
    assert rates == [1e-3 * lr_factor(step, STEPS, 0.25) for step in range(STEPS)]
    sizes = [8, 8, 8, 6]
    for epoch, entry in enumerate(result.history):
        losses = [point["loss"] for point in result.curve[4 * epoch : 4 * epoch + 4]]
        assert min(losses) <= entry["train_loss"] <= max(losses)
        assert len(set(losses)) == len(sizes)


@pytest.mark.parametrize(("epochs", "points"), [(6, 180), (7, 105)])
def test_the_curve_of_a_long_run_is_thinned(epochs: int, points: int, tmp_path: Path) -> None:
    """30 steps an epoch: 180 steps have a point each, of 210 every second."""
    settings = replace(PLAIN, epochs=epochs, batch_size=1, save_every=50)
    steps, every = 30 * epochs, 30 * epochs // points
    small: dict[str, Any] = {"train": TRAIN, "validation": make_rows(2, 1)}
    with pytest.raises(Killed):
        run(make_model(layers=1), tmp_path / "state", settings, on_step=kill_at(107), **small)
    result = run(make_model(layers=1), tmp_path / "state", settings, resume=True, **small)
    assert len(result.curve) == points <= CURVE_POINTS
    assert [point["step"] for point in result.curve] == list(range(every, steps + 1, every))
    rates = [1e-3 * lr_factor(step - 1, steps, 0.25) for step in range(every, steps + 1, every)]
    assert [point["lr"] for point in result.curve] == rates
