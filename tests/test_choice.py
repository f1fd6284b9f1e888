"""The choice between sessions, with a clock that is set by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from quantkit.choice import fastest
from quantkit.errors import CheckpointError, DependencyError
from quantkit.heads import Head
from quantkit.session import Session


class Clock:
    """Time that only the sessions' work lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """Takes some time for a call and some for each token."""

    def __init__(self, clock: Clock, call: float, token: float) -> None:
        self.clock, self.call, self.token = clock, call, token

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        self.clock.now += self.call + self.token * arrays["input_ids"].size
        return np.zeros((len(arrays["input_ids"]), 2), np.float32)


def opener(clock: Clock, call: float, token: float) -> Callable[[], Session]:
    words = {str(number): number for number in range(50)}
    return lambda: Session(
        Slow(clock, call, token),  # type: ignore[arg-type]
        Tokenizer(WordLevel(words, "0")),
        Head("classification", ("a", "b")),
        Path("model"),
        max_length=128,
        padding=0,
    )


def broken() -> Session:
    raise DependencyError("not installed")


def test_the_fastest_is_chosen_by_measured_times() -> None:
    clock = Clock()
    choice = fastest({"a": opener(clock, 2.0, 0.0), "b": opener(clock, 1.0, 0.0)}, [(1, 32)], clock)
    assert choice.name == "b"
    assert choice.seconds == {"a": {(1, 32): 2.0}, "b": {(1, 32): 1.0}}
    assert choice.notes() == ("a: 1x32 2000.00 ms", "b (chosen): 1x32 1000.00 ms")


def test_all_shapes_count_alike() -> None:
    clock = Clock()
    candidates = {"steady": opener(clock, 9.0, 0.0), "lean": opener(clock, 0.0, 1 / 32)}
    shapes = [(1, 32), (8, 128), (4, 256)]  # the last is cut to the sessions' 128 tokens
    choice = fastest(candidates, shapes, clock)
    assert choice.seconds["lean"] == {(1, 32): 1.0, (8, 128): 32.0, (4, 128): 16.0}
    # 1 * 32 * 16 is less than 9 * 9 * 9, though the sum is more.
    assert choice.name == "lean"


def test_what_cannot_be_opened_is_told_and_left_out() -> None:
    choice = fastest({"x": broken, "y": opener(Clock(), 1.0, 0.0)})
    assert (choice.name, choice.seconds) == ("y", {})
    assert choice.notes() == ("x was not tried: not installed",)
    with pytest.raises(CheckpointError, match="no file"):
        fastest({"z": lambda: (_ for _ in ()).throw(CheckpointError("no file")), "x": broken})
