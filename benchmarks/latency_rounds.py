"""Interleaved rounds over open candidates: answers, repeats and times."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from quantkit.errors import MeasurementError
from quantkit.measure import Worker

__all__ = ["Clock", "logits_off", "repeats_of", "round_of"]

Clock = Literal["seconds", "cpu_seconds"]  # the wall's, or what all threads used

ANSWERED = {"batch": 4, "length": 32}  # the batch whose logits are compared
TURN_SECONDS, LEAST_REPEATS, MOST_REPEATS = 0.4, 2, 200


def logits_off(workers: Mapping[str, Worker], vocab: int) -> dict[str, float]:
    """How far each candidate's logits are from the first one's, of the largest.

    Raises:
        MeasurementError: the two float files differ.
    """
    answers = {
        name: np.array(worker.ask(do="run", rows=vocab, **ANSWERED)["logits"])
        for name, worker in workers.items()
        if name != "rate"
    }
    reference = next(iter(answers.values()), np.ones(1))
    top = float(np.abs(reference).max())
    far = {name: float(np.abs(each - reference).max()) / top for name, each in answers.items()}
    if next(iter(far), "") == "float" and not far.get("ort-fp32", 0.0) <= 1e-3:
        raise MeasurementError("The two float files do not compute the same model.")
    return far


def repeats_of(
    workers: Mapping[str, Worker], vocab: int, shapes: Sequence[tuple[int, int]]
) -> dict[tuple[str, int, int], int]:
    """Calls per turn: about `TURN_SECONDS` of them, by a first timing."""
    repeats = {}
    for batch, length in shapes:
        for name, worker in workers.items():
            seconds = _milliseconds(worker, vocab, batch, length, LEAST_REPEATS, "seconds") / 1e3
            fitting = round(TURN_SECONDS / seconds)
            repeats[name, batch, length] = min(max(fitting, LEAST_REPEATS), MOST_REPEATS)
    return repeats


def round_of(
    index: int,
    workers: Mapping[str, Worker],
    vocab: int,
    repeats: Mapping[tuple[str, int, int], int],
    clock: Clock = "seconds",
) -> dict[str, dict[str, float]]:
    """Median milliseconds by candidate and shape; who goes first changes from round to round."""
    first = index % len(workers)
    names = [*workers][first:] + [*workers][:first]
    times: dict[str, dict[str, float]] = {name: {} for name in workers}
    for batch, length in dict.fromkeys((batch, length) for _, batch, length in repeats):
        for name in names:
            count = repeats[name, batch, length]
            taken = _milliseconds(workers[name], vocab, batch, length, count, clock)
            times[name][f"{batch}x{length}"] = round(taken, 5)
    return times


def _milliseconds(
    worker: Worker, vocab: int, batch: int, length: int, repeats: int, clock: Clock
) -> float:
    answer = worker.ask(do="time", batch=batch, length=length, rows=vocab, repeats=repeats)
    return float(np.median(answer[clock])) * 1e3
