"""The scores of one measured candidate."""

from collections.abc import Mapping
from typing import Any

from quantkit.answers import decisions
from quantkit.exporter.inspect import Components
from quantkit.heads import Head
from quantkit.measure import Measured
from quantkit.metrics import (
    MAIN,
    Answers,
    Interval,
    agreement,
    bootstrap,
    confusion,
    paired_bootstrap,
    per_class,
    scores,
    statistics,
)
from quantkit.report.records import CandidateReport

__all__ = ["candidate_report"]


def candidate_report(
    name: str,
    file: str,
    measured: Measured,
    *,
    head: Head,
    references: Answers | None,
    components: Components,
    parity: Mapping[str, Any],
    parameters: int,
    baseline: Measured | None = None,
    control: Measured | None = None,
    training: Mapping[str, Any] | None = None,
    cache_bytes: int | None = None,
) -> CandidateReport:
    """Score what one candidate said of the test rows.

    Args:
        name: of the candidate.
        file: relative to the run's folder.
        measured: its outputs, times and memory.
        head: what the outputs mean.
        references: the right answers, as `quantkit.metrics` takes them; None for features,
            which are held against the float model's vectors.
        components: bytes of the file.
        parity: the gate's findings on it.
        parameters: number of the model's parameters.
        baseline: the float model; None if the candidate is the float model itself.
        control: the float model trained on, for a candidate that was trained on as well.
        training: the record of the training that ended in this model. Its single values are
            kept; history and curve belong to the report.
        cache_bytes: of its optimized graph in a cache.

    Raises:
        ValueError: references that do not fit the outputs.
    """
    answers = decisions(head, measured.outputs)
    others = None if baseline is None else decisions(head, baseline.outputs)
    if head.kind == "features":
        references = answers if others is None else others
    if references is None:
        raise ValueError(f"a model for {head.kind} is scored against references; found none.")
    found, main = statistics(head, references, answers), MAIN[head.kind]

    def change_from(measured: Measured | None) -> Interval | None:
        if measured is None:
            return None
        before = statistics(head, references, decisions(head, measured.outputs))
        return paired_bootstrap(before[main], found[main])

    return CandidateReport(
        name=name,
        file=file,
        scores={key: bootstrap(statistic) for key, statistic in found.items()},
        table=scores(head, references, answers),
        classes=per_class(head, references, answers),
        confusion=confusion(head, references, answers),
        change=change_from(baseline),
        beyond_training=change_from(control),
        agreement=None if others is None else agreement(head, others, answers),
        bytes=components,
        latency=measured.latency,
        open_seconds=measured.open_seconds,
        peak_bytes=measured.peak_bytes,
        parity=dict(parity),
        parameters=parameters,
        training=None if training is None else _single_values(training),
        cache_bytes=cache_bytes,
    )


def _single_values(training: Mapping[str, Any]) -> dict[str, Any]:
    """A training record without its lists, and with the seconds that validation took of it."""
    epochs = training.get("history", ())
    known = [epoch["validation_seconds"] for epoch in epochs if "validation_seconds" in epoch]
    total = {"validation_seconds": sum(known)} if known else {}
    return total | {key: v for key, v in training.items() if not isinstance(v, list | tuple)}
