import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantkit.batching import References
from quantkit.errors import CheckpointError, DataError, RecipeError
from quantkit.heads import Head
from quantkit.method import plain
from quantkit.metrics import main_score
from quantkit.optimization import lr_factor
from quantkit.prediction import Outputs
from quantkit.recipe import Finetune
from quantkit.train import TrainingResult
from tests.training import (
    CLASSES,
    FEATURES,
    REGRESSION,
    SETTINGS,
    STEPS,
    TRAIN,
    TRAINABLE,
    VALIDATION,
    accuracy,
    assert_same_bits,
    make_model,
    make_rows,
    run,
    tokens,
)

Trained = tuple[nn.Module, TrainingResult]


@pytest.fixture(scope="module")
def uninterrupted() -> Trained:
    model = make_model()
    return model, run(model)


def test_a_learnable_task_is_learnt() -> None:
    settings = replace(SETTINGS, epochs=8, lr=1e-2, dropout=0.0)
    result = run(make_model(), settings=settings, train=make_rows(128, 2), score=accuracy)
    losses = [entry["train_loss"] for entry in result.history]
    assert losses[0] > 0.5 > 0.1 > losses[-1]
    assert result.best_score >= 0.9
    assert result.steps == 8 * 16


@pytest.mark.parametrize("head", TRAINABLE, ids=lambda head: head.kind)
def test_every_kind_of_head_learns(head: Head) -> None:
    settings = replace(SETTINGS, epochs=20, lr=1e-2, dropout=0.0)
    rows = make_rows(16, 2, head)
    result = run(make_model(head), settings=settings, train=rows, validation=rows)
    losses = [entry["validation_loss"] for entry in result.history]
    assert losses[-1] < 0.6 * losses[0]
    assert result.best_epoch > 10


def test_history_says_what_each_epoch_did(uninterrupted: Trained) -> None:
    model, result = uninterrupted
    keys = ["epoch", "train_loss", "validation_loss", "validation_score", "lr", "seconds"]
    assert [list(entry) for entry in result.history] == [[*keys, "validation_seconds"]] * 3
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    # 3 of 12 steps rise; the last steps of the epochs are 3, 7 and 11, counted from 0.
    rates = [entry["lr"] * 9 for entry in result.history]
    assert rates == pytest.approx([9e-3, 5e-3, 1e-3])
    assert all(0 < entry["validation_seconds"] < entry["seconds"] for entry in result.history)
    assert result.seconds == sum(entry["seconds"] for entry in result.history)
    assert result.steps == STEPS
    assert not result.stopped_early
    assert not model.training


def test_the_result_says_what_the_run_took(uninterrupted: Trained) -> None:
    result = uninterrupted[1]
    # 16 wide: the rows of 40 words, 16 positions, 2 types and a norm; two layers of four
    # 16 x 16 and two 16 x 32 products, their biases and two norms; pooler; classifier.
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 2 * 32
    assert result.parameters == 16 * (40 + 16 + 2 + 2) + 2 * layer + 16 * 16 + 16 + 2 * 16 + 2
    assert (result.processes, result.device_peak_bytes) == (1, None)
    assert 100e6 < result.peak_bytes < 100e9  # torch alone takes as much


@pytest.mark.parametrize(("asked", "got"), [("fp32", "fp32"), ("auto", "fp32"), ("bf16", "bf16")])
def test_the_precision_that_was_used_is_told(asked: Any, got: str) -> None:  # noqa: ANN401
    """On a CPU `auto` is fp32, where bf16 is slower as a rule."""
    settings = replace(SETTINGS, epochs=1, precision=asked)
    assert run(make_model(), settings=settings).precision == got


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    scores = iter([0.5, 0.75, 0.75, 0.25])  # the earlier of two equal epochs wins

    def score(references: References, outputs: Outputs) -> float:
        assert np.array_equal(references, VALIDATION.references())
        assert isinstance(outputs, np.ndarray)
        assert outputs.shape == (20, 2)
        return next(scores)

    model, snapshots = make_model(), list[dict[str, Tensor]]()
    look = lambda _: snapshots.append(copy.deepcopy(model.state_dict()))  # noqa: E731
    result = run(model, settings=replace(SETTINGS, epochs=4), score=score, on_step=look)
    assert (result.best_epoch, result.best_score) == (2, 0.75)
    final = model.state_dict()
    equal = [all(torch.equal(shot[key], final[key]) for key in final) for shot in snapshots[3::4]]
    assert equal == [False, True, False, False]


def test_where_a_method_has_a_divergence_the_least_wins_and_not_the_best_score() -> None:
    divergences, scores = iter([0.3, 0.1, 0.1, 0.2]), iter([0.9, 0.6, 0.7, 0.8])
    model, settings = make_model(), replace(SETTINGS, epochs=4)
    method = replace(plain(model, CLASSES, settings), divergence=lambda _: next(divergences))
    result = run(model, settings=settings, score=lambda *_: next(scores), method=method)
    assert (result.best_epoch, result.best_score) == (2, 0.6)
    found = [entry["validation_divergence"] for entry in result.history]
    assert found == [0.3, 0.1, 0.1, 0.2]


CHANGES = [replace(SETTINGS, dropout=0.0), replace(SETTINGS, seed=1)]


@pytest.mark.parametrize("settings", CHANGES, ids=["dropout", "seed"])
def test_dropout_and_the_seed_change_the_weights(
    settings: Finetune, uninterrupted: Trained
) -> None:
    """Or else the tests of resuming would not notice a generator that is not restored."""
    model = make_model()
    run(model, settings=settings)
    with pytest.raises(AssertionError):
        assert_same_bits(model, uninterrupted[0])


def test_each_epoch_has_its_own_order_of_all_rows() -> None:
    model, seen = make_model(), list[list[int]]()

    def look(module: nn.Module, _: object, batch: dict[str, Tensor]) -> None:
        if module.training:
            seen.extend(row[row > 0].tolist() for row in batch["input_ids"])

    model.register_forward_pre_hook(look, with_kwargs=True)
    run(model)
    epochs = [seen[start : start + len(TRAIN)] for start in range(0, len(seen), len(TRAIN))]
    assert [sorted(epoch) for epoch in epochs] == [sorted(tokens(TRAIN))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_steps_follow_the_schedule_with_clipped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []
    norms: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: None = None) -> None:
        rates.append([group["lr"] for group in self.param_groups])
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(make_model(), settings=replace(SETTINGS, gradient_clip=1e-2))
    expected = [[1e-3 * lr_factor(at, STEPS, 0.25)] * 2 for at in range(STEPS)]
    assert rates == pytest.approx(np.array(expected))
    assert norms == pytest.approx([1e-2] * STEPS, rel=1e-3)


def poison(model: nn.Module, step: int) -> Callable[[int], None]:
    """Put NaN among the weights behind `step`."""

    def on_step(done: int) -> None:
        if done == step:
            next(model.parameters()).detach()[:] = torch.nan

    return on_step


def test_nan_weights_are_told_apart_from_divergence() -> None:
    model = make_model()
    poison(model, 0)(0)
    with pytest.raises(CheckpointError, match=r"loss is nan at step 1.*checkpoint's weights"):
        run(model)
    model = make_model()
    with pytest.raises(RecipeError, match=r"after 3 steps with finetune.lr 0.001.*Lower finetune"):
        run(model, on_step=poison(model, 3))


def test_divergence_at_the_end_of_an_epoch_is_told_before_a_score_trips_over_it() -> None:
    def score(references: Any, outputs: Outputs) -> float:  # noqa: ANN401
        return main_score(REGRESSION, references, REGRESSION.decide(np.asarray(outputs)))

    rows = make_rows(30, 0, REGRESSION)
    model = make_model(REGRESSION)
    with pytest.raises(RecipeError, match="validation loss is nan after 4 steps"):
        run(model, train=rows, validation=rows, score=score, on_step=poison(model, 4))


def test_an_infinite_gradient_stops_before_it_reaches_the_weights() -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    bias: Any = model.get_parameter("classifier.bias")
    bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(CheckpointError, match="gradient is"):
        run(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rows_that_do_not_fit_are_refused() -> None:
    one_class = replace(TRAIN, head=Head("classification", ("low",)))
    with pytest.raises(DataError, match="train split has label 1, and with 1 classes"):
        run(make_model(), train=one_class)
    with pytest.raises(DataError, match="validation split has no rows"):
        run(make_model(), validation=make_rows(0, 0))
    features = make_rows(8, 0, FEATURES)
    with pytest.raises(ValueError, match="features has no loss"):
        run(make_model(), train=features, validation=features)


def test_bf16_leaves_no_trace_in_the_model(uninterrupted: Trained) -> None:
    model = make_model()
    names = set(vars(model))
    result = run(model, settings=replace(SETTINGS, precision="bf16"))
    assert set(vars(model)) == names
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = uninterrupted[1].history[0]["train_loss"]
    assert 0 < abs(result.history[0]["train_loss"] - exact) < 0.05


def test_one_line_an_epoch_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run(make_model(), progress=True)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line[:10] for line in lines] == ["epoch 1/3 ", "epoch 2/3 ", "epoch 3/3 "]
    assert "validation score 0." in lines[0]
    assert printed.out == ""
