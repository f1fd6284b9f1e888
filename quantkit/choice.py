"""The fastest of several sessions that answer the same, by a measurement on this machine."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.errors import CheckpointError, DependencyError, QuantkitError
from quantkit.session import Session, token_arrays

__all__ = ["SHAPES", "Choice", "fastest"]

SHAPES = ((1, 32), (1, 128), (32, 128))  # batch, tokens: what a candidate is judged by
WARM_UP, ROUNDS = 2, 7

Seconds = dict[tuple[int, int], float]  # shape -> median


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why: the median seconds of every candidate that could be opened."""

    name: str
    session: Session
    seconds: dict[str, Seconds]
    refused: dict[str, str]  # what could not be opened, with the reason

    def notes(self) -> tuple[str, ...]:
        """For people: one line per candidate."""
        lines = [f"{name} was not tried: {reason}" for name, reason in self.refused.items()]
        for name, times in self.seconds.items():
            shown = ", ".join(f"{b}x{n} {1e3 * s:.2f} ms" for (b, n), s in times.items())
            lines.append(f"{name}{' (chosen)' if name == self.name else ''}: {shown}")
        return tuple(lines)


def fastest(
    candidates: Mapping[str, Callable[[], Session]],
    shapes: Sequence[tuple[int, int]] = SHAPES,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Open every candidate, time them in turns, keep the one with the least mean log time.

    The mean of logarithms weighs a tenth saved on short texts like a tenth saved on long ones.
    A candidate that cannot be opened here is left out; a single one is not timed.

    Args:
        candidates: name -> opens a session.
        shapes: (batch, tokens), cut to what the sessions can take.
        clock: seconds.

    Raises:
        QuantkitError: none can be opened; the error is the first one's.
    """
    sessions: dict[str, Session] = {}
    problems: dict[str, QuantkitError] = {}
    for name, opened in candidates.items():
        try:
            sessions[name] = opened()
        except (CheckpointError, DependencyError) as problem:
            problems[name] = problem
    if not sessions:
        raise next(iter(problems.values()))
    seconds = _times(sessions, shapes, clock) if len(sessions) > 1 else {}
    name = min(sessions, key=lambda each: _score(seconds.get(each, {})))
    return Choice(
        name, sessions[name], seconds, {name: str(problem) for name, problem in problems.items()}
    )


def _score(times: Seconds) -> float:
    return float(np.mean([math.log(value) for value in times.values()])) if times else 0.0


def _times(
    sessions: Mapping[str, Session],
    shapes: Sequence[tuple[int, int]],
    clock: Callable[[], float],
) -> dict[str, Seconds]:
    """Medians of interleaved calls."""
    result: dict[str, Seconds] = {name: {} for name in sessions}
    limit = min(session.max_length for session in sessions.values())
    for batch, length in dict.fromkeys((b, min(n, limit)) for b, n in shapes):
        taken: dict[str, list[float]] = {name: [] for name in sessions}
        for at in range(WARM_UP + ROUNDS):
            for name, session in sessions.items():
                arrays = token_arrays(batch, length, session.vocabulary)
                begin = clock()
                session.run(arrays)
                if at >= WARM_UP:
                    taken[name].append(clock() - begin)
        for name, values in taken.items():
            result[name][batch, length] = float(np.median(values))
    return result
