import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantkit.errors import RecipeError
from quantkit.heads import Head
from quantkit.train import TrainingResult
from quantkit.training_state import has_state
from tests.training import (
    CLASSES,
    SETTINGS,
    STEPS,
    TRAIN,
    VALIDATION,
    WORDS,
    Killed,
    assert_same_bits,
    kill_at,
    make_model,
    make_rows,
    run,
    without_seconds,
)

Trained = tuple[nn.Module, TrainingResult]


@pytest.fixture(scope="module")
def uninterrupted() -> Trained:
    model = make_model()
    result = run(model)
    assert result.best_epoch == 3  # or else a run killed later would have its weights already
    return model, result


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


OTHER_RUNS = {
    "words in parts": (WORDS, replace(SETTINGS, accumulation=3)),
    "activations twice": (CLASSES, replace(SETTINGS, checkpointing=True)),
    "bf16": (CLASSES, replace(SETTINGS, precision="bf16")),
}


@pytest.mark.parametrize("kind", OTHER_RUNS)
def test_runs_of_other_kinds_end_with_the_same_bits_too(kind: str, tmp_path: Path) -> None:
    head, settings = OTHER_RUNS[kind]
    rows: dict[str, Any] = {"train": make_rows(30, 0, head), "validation": make_rows(20, 1, head)}
    whole, resumed = make_model(head), make_model(head)
    result = run(whole, settings=settings, **rows)
    with pytest.raises(Killed):
        run(make_model(head), tmp_path / "state", settings, on_step=kill_at(7), **rows)
    again = run(resumed, tmp_path / "state", settings, resume=True, **rows)
    assert_same_bits(whole, resumed)
    assert without_seconds(again) == without_seconds(result)


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


def test_the_seconds_before_a_kill_count(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(make_model(), tmp_path / "state", on_step=kill_at(9))
    saved = json.loads((tmp_path / "state/state.json").read_text())["position"]
    result = run(make_model(), tmp_path / "state", resume=True)
    assert list(result.history[:2]) == saved["history"]  # to the last digit
    assert result.history[2]["seconds"] > saved["seconds"] > 0
    assert result.seconds == sum(entry["seconds"] for entry in result.history)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    with pytest.raises(Killed):
        run(make_model(), tmp_path / "state", on_step=kill_at(7))
    return tmp_path / "state"


OTHERS: dict[str, dict[str, Any]] = {
    "lr": {"settings": replace(SETTINGS, lr=2e-3)},
    "epochs": {"settings": replace(SETTINGS, epochs=4)},
    "accumulation": {"settings": replace(SETTINGS, accumulation=2)},
    "patience": {"settings": replace(SETTINGS, patience=2)},
    "rows": {"train": VALIDATION},
    "validation rows": {"validation": TRAIN},
    "names of classes": {"train": replace(TRAIN, head=Head("classification", ("no", "yes")))},
}


@pytest.mark.parametrize("change", OTHERS)
def test_resuming_with_other_settings_or_data_is_refused(change: str, killed: Path) -> None:
    with pytest.raises(RecipeError, match="Resume it with what it began with, or pass --overwrite"):
        run(make_model(), killed, resume=True, **OTHERS[change])


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_begins(resume: bool, killed: Path, uninterrupted: Trained) -> None:
    """Without `resume` a state is replaced, and without a state there is nothing to resume."""
    model, steps = make_model(), list[int]()
    folder = killed.with_name("none") if resume else killed
    run(model, folder, resume=resume, on_step=steps.append)
    assert steps[0] == 1
    assert_same_bits(model, uninterrupted[0])


# The second epoch is the best, and two without a better one are enough after the fourth.
SCORES = (0.5, 0.75, 0.75, 0.25, 1.0, 1.0)
PATIENT = replace(SETTINGS, epochs=6, patience=2)


def stopping(model: nn.Module, folder: Path | None, done: int = 0, **options: Any) -> Any:  # noqa: ANN401
    """A run whose epochs from the one after `done` score as `SCORES` says."""
    scores = iter(SCORES[done:])
    return run(model, folder, PATIENT, score=lambda *_: next(scores), **options)


@pytest.mark.parametrize(("step", "done"), [(2, 0), (6, 1), (14, 3), (16, 3)])
def test_a_resumed_run_stops_where_the_whole_one_does(step: int, done: int, tmp_path: Path) -> None:
    whole, resumed = make_model(), make_model()
    expected = stopping(whole, None)
    assert (expected.steps, expected.best_epoch, expected.stopped_early) == (16, 2, True)
    with pytest.raises(Killed):
        stopping(make_model(), tmp_path / "state", on_step=kill_at(step))
    result = stopping(resumed, tmp_path / "state", done, resume=True)
    assert without_seconds(result) == without_seconds(expected)
    assert_same_bits(whole, resumed)


def test_a_run_that_had_stopped_does_nothing_when_it_is_resumed(tmp_path: Path) -> None:
    whole, resumed, steps = make_model(), make_model(), list[int]()
    expected = stopping(whole, tmp_path / "state")
    result = stopping(resumed, tmp_path / "state", len(SCORES), resume=True, on_step=steps.append)
    assert steps == []
    assert without_seconds(result) == without_seconds(expected)
    assert_same_bits(whole, resumed)
