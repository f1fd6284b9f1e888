import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from quantkit.batching import Encoded, collate
from quantkit.errors import CheckpointError, DataError, RecipeError
from quantkit.recipe import Finetune
from quantkit.train import (
    TrainingResult,
    finetune,
    lr_factor,
    parameter_groups,
    predict_logits,
    set_dropout,
)
from quantkit.training_state import has_state

SETTINGS = Finetune(epochs=3, batch_size=8, lr=1e-3, warmup=0.25, dropout=0.1, save_every=3)
STEPS = 12  # 4 an epoch


Trained = tuple[nn.Module, TrainingResult]


class Killed(Exception):  # noqa: N818
    """Stands for a kill; no code of quantkit may catch it."""


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config.intermediate_size, config.max_position_embeddings = 32, 16
    model = BertForSequenceClassification(config)
    model.train(False)  # as `from_pretrained` gives it
    return model


def make_rows(count: int, seed: int) -> Encoded:
    """Random tokens; the label says whether the second one is in the upper half."""
    random = np.random.default_rng(seed)
    rows = [random.integers(5, 40, size=random.integers(3, 12)).tolist() for _ in range(count)]
    labels = [int(row[1] >= 22) for row in rows]
    return Encoded(rows, [[0] * len(row) for row in rows], labels)


TRAIN, VALIDATION = make_rows(30, 0), make_rows(20, 1)  # the last batch of an epoch is short


def accuracy(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    return float((labels == predictions).mean())


def run(
    model: nn.Module,
    folder: Path | None = None,
    settings: Finetune = SETTINGS,
    **options: Any,  # noqa: ANN401
) -> TrainingResult:
    arguments: dict[str, Any] = {"score": accuracy, "progress": False, "classes": 2} | options
    train, validation = arguments.pop("train", TRAIN), arguments.pop("validation", VALIDATION)
    return finetune(
        model, train, validation, settings, pad_token_id=0, state_folder=folder, **arguments
    )


def kill_at(step: int) -> Callable[[int], None]:
    def on_step(done: int) -> None:
        if done == step:
            raise Killed

    return on_step


def without_seconds(result: TrainingResult) -> TrainingResult:
    history = tuple(entry | {"seconds": 0.0} for entry in result.history)
    return replace(result, seconds=0.0, history=history)


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are many times slower on several threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted() -> Trained:
    model = make_model()
    return model, run(model)


def test_a_learnable_task_is_learnt() -> None:
    settings = replace(SETTINGS, epochs=10, lr=5e-3, dropout=0.0)
    result = run(make_model(), settings=settings, train=make_rows(256, 2))
    losses = [entry["train_loss"] for entry in result.history]
    assert losses[0] > 0.6 > 0.1 > losses[-1]
    assert result.best_score >= 0.9
    assert result.steps == 10 * 32


def test_history_says_what_each_epoch_did(uninterrupted: Trained) -> None:
    model, result = uninterrupted
    keys = ["epoch", "train_loss", "validation_loss", "validation_score", "lr", "seconds"]
    assert [list(entry) for entry in result.history] == [keys] * 3
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    # 3 of 12 steps rise; the last steps of the epochs are 3, 7 and 11, counted from 0.
    rates = [entry["lr"] * 9 for entry in result.history]
    assert rates == pytest.approx([9e-3, 5e-3, 1e-3])
    assert result.steps == STEPS
    assert result.seconds == sum(entry["seconds"] for entry in result.history) > 0
    assert not model.training


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    scores = iter([0.5, 0.75, 0.75, 0.25])  # the earlier of two equal epochs wins

    def score(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
        assert labels.tolist() == VALIDATION.labels
        return next(scores)

    model, snapshots = make_model(), list[dict[str, Tensor]]()
    look = lambda _: snapshots.append(copy.deepcopy(model.state_dict()))  # noqa: E731
    result = run(model, settings=replace(SETTINGS, epochs=4), score=score, on_step=look)
    assert (result.best_epoch, result.best_score) == (2, 0.75)
    final = model.state_dict()
    equal = [all(torch.equal(shot[key], final[key]) for key in final) for shot in snapshots[3::4]]
    assert equal == [False, True, False, False]


# The step of the kill, and the newest state then: every 3 steps, and behind an epoch of 4.
KILLS = {1: 0, 3: 3, 4: 3, 5: 4, 7: 6, 8: 6, 9: 9, 11: 9, 12: 12}


@pytest.mark.parametrize(("step", "saved"), KILLS.items())
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    step: int, saved: int, tmp_path: Path, uninterrupted: Trained
) -> None:
    folder = tmp_path / "state"
    with pytest.raises(Killed):
        run(make_model(), folder, on_step=kill_at(step))
    assert has_state(folder) == (saved > 0)
    model, steps = make_model(), list[int]()
    torch.manual_seed(99)  # another process has other random numbers
    result = run(model, folder, resume=True, on_step=steps.append)
    assert steps == list(range(saved + 1, STEPS + 1))
    assert_same_bits(model, uninterrupted[0])
    assert without_seconds(result) == without_seconds(uninterrupted[1])


def test_a_run_killed_twice_and_a_state_of_a_complete_run(
    tmp_path: Path, uninterrupted: Trained
) -> None:
    for step in (3, 10):
        with pytest.raises(Killed):
            run(make_model(), tmp_path / "state", resume=True, on_step=kill_at(step))
    for _ in range(2):  # the second finds nothing left to do
        model = make_model()
        result = run(model, tmp_path / "state", resume=True)
        assert_same_bits(model, uninterrupted[0])
        assert without_seconds(result) == without_seconds(uninterrupted[1])


def test_dropout_and_the_seed_change_the_weights(uninterrupted: Trained) -> None:
    """Or else the tests of resuming would not notice a generator that is not restored."""
    for settings in (replace(SETTINGS, dropout=0.0), replace(SETTINGS, seed=1)):
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
    assert [sorted(epoch) for epoch in epochs] == [sorted(TRAIN.input_ids)] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    with pytest.raises(Killed):
        run(make_model(), tmp_path / "state", on_step=kill_at(7))
    return tmp_path / "state"


OTHERS = [{"settings": replace(SETTINGS, lr=2e-3)}, {"train": VALIDATION}, {"validation": TRAIN}]


@pytest.mark.parametrize("change", OTHERS)
def test_resuming_with_other_settings_or_data_is_refused(change: Any, killed: Path) -> None:  # noqa: ANN401
    with pytest.raises(RecipeError, match="Resume it with what it began with, or pass --overwrite"):
        run(make_model(), killed, resume=True, **change)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_begins(resume: bool, killed: Path, uninterrupted: Trained) -> None:
    """Without `resume` a state is replaced, and without a state there is nothing to resume."""
    model, steps = make_model(), list[int]()
    folder = killed.with_name("none") if resume else killed
    run(model, folder, resume=resume, on_step=steps.append)
    assert steps[0] == 1
    assert_same_bits(model, uninterrupted[0])


def test_nan_weights_are_told_apart_from_divergence() -> None:
    model = make_model()
    model.classifier.weight.detach()[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"loss is nan at step 1.*checkpoint's weights"):
        run(model)

    model = make_model()

    def poison(step: int) -> None:
        if step == 3:
            model.classifier.weight.detach()[0, 0] = torch.nan

    with pytest.raises(RecipeError, match=r"after 3 steps with finetune.lr 0.001.*Lower finetune"):
        run(model, on_step=poison)


def test_an_infinite_gradient_stops_before_it_reaches_the_weights() -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    bias: Any = model.classifier.bias
    bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(CheckpointError, match="gradient is"):
        run(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="train split has label 1, and with 1 classes"):
        run(make_model(), classes=1)
    with pytest.raises(DataError, match="validation split has no rows"):
        run(make_model(), validation=Encoded([], [], []))
    with pytest.raises(DataError, match="no rows to predict"):
        predict_logits(make_model(), Encoded([], [], []), pad_token_id=0)


def test_lr_rises_and_falls_by_hand() -> None:
    # 10 steps, 30 %: three rise by quarters, the fourth is the peak, then down by sevenths.
    expected = [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0]
    assert [lr_factor(step, 10, 0.3) for step in range(11)] == pytest.approx(expected)
    assert [lr_factor(step, 2, 0.0) for step in range(3)] == [1, 0.5, 0]
    assert [lr_factor(step, 1, 0.9) for step in range(2)] == [1, 0]


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


def test_biases_and_norms_are_not_decayed() -> None:
    model = make_model()
    decayed, plain = parameter_groups(model, replace(SETTINGS, weight_decay=0.3))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in plain["params"]}
    assert without == {
        name for name in names.values() if name.endswith(".bias") or "LayerNorm" in name
    }
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(
        names.values()
    ) - without


def test_set_dropout_reaches_attention_and_configuration() -> None:
    model = make_model()
    set_dropout(model, 0.4)
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    fields = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    assert shares == {0.4} == {getattr(model.config, name) for name in fields}
    # Only the attention's own share is left, and it alone must make two passes differ.
    set_dropout(model, 0.0)
    attention: Any = model.get_submodule("bert.encoder.layer.0.attention.self")
    batch = collate(TRAIN, range(4), 0)
    model.train()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    attention.dropout.p = attention.dropout_prob = 0.4  # transformers 5 and 4
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_predictions_come_in_the_order_of_the_rows() -> None:
    model = make_model()
    model.train()
    found = predict_logits(model, VALIDATION, pad_token_id=0, batch_size=3)
    assert model.training
    assert found.shape == (20, 2)
    assert found.dtype == np.float32
    model.train(False)
    with torch.no_grad():
        alone = [model(**collate(VALIDATION, [row], 0)).logits[0].numpy() for row in range(20)]
    np.testing.assert_allclose(found, np.stack(alone), rtol=0, atol=1e-6)
    assert np.ptp(found[:, 0]) > 1e-3  # or else any order would do


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
