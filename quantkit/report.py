"""One report per run: a frozen dataclass, JSON in and out, and Markdown made from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from quantkit.errors import QuantkitError
from quantkit.exporter.inspect import Components
from quantkit.files import read_json, write_json, write_text
from quantkit.measure import Latency, Measured
from quantkit.metrics import (
    Interval,
    accuracy,
    agreement,
    bootstrap,
    macro_f1,
    paired_bootstrap,
)

__all__ = ["SCHEMA", "CandidateReport", "Report", "candidate_report", "report_rows", "to_markdown"]

SCHEMA = 1
MEGABYTE = 1e6


@dataclass(frozen=True)
class CandidateReport:
    """One measured model; intervals are 95 %, from 1,000 bootstrap draws over test texts."""

    name: str
    file: str  # relative to the run's folder
    accuracy: Interval
    macro_f1: Interval
    macro_f1_change: Interval | None  # against the float model, paired; None for itself
    agreement: float | None  # share of the float model's labels; None for itself
    bytes: Components
    latency: tuple[Latency, ...]
    open_seconds: float
    peak_bytes: int  # of its process, minus what the imports took
    parity: dict[str, Any]  # the gate's findings on the file


@dataclass(frozen=True)
class Report:
    """Everything a reader needs to judge or repeat a run."""

    schema: int
    name: str
    task: str
    recipe: dict[str, Any]
    recipe_hash: str
    environment: dict[str, Any]
    test_rows: int
    max_length: int
    seed: int
    trimmed_bytes: int  # of the float file's embeddings that no token can reach
    candidates: tuple[CandidateReport, ...]
    notes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.md` into `folder`."""
        write_json(folder / "report.json", asdict(self))
        write_text(folder / "report.md", to_markdown(self))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read a `report.json`.

        Raises:
            QuantkitError: another schema version, or not a report.
        """
        values = read_json(path)
        if values.get("schema") != SCHEMA:
            raise QuantkitError(
                f"{path} has schema {values.get('schema')!r}; this quantkit reads {SCHEMA}."
            )
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as problem:
            raise QuantkitError(f"{path} is not a report: {problem}") from None


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)


def candidate_report(
    name: str,
    file: str,
    measured: Measured,
    references: np.ndarray,
    components: Components,
    parity: Mapping[str, Any],
    baseline: Measured | None,
) -> CandidateReport:
    """Score one candidate's logits [texts, classes] against `references` [texts].

    `baseline` is the float model; None if the candidate is the float model itself.
    """
    labels = measured.logits.argmax(1)
    change, share = None, None
    if baseline is not None:
        others = baseline.logits.argmax(1)
        change = paired_bootstrap(references, others, labels, macro_f1)
        share = agreement(others, labels)
    return CandidateReport(
        name,
        file,
        bootstrap(references, labels, accuracy),
        bootstrap(references, labels, macro_f1),
        change,
        share,
        components,
        measured.latency,
        measured.open_seconds,
        measured.peak_bytes,
        dict(parity),
    )


def to_markdown(report: Report) -> str:
    """The report as Markdown: quality, size, latency and memory side by side."""
    lines = [
        f"# {report.name}: {report.task}, {report.test_rows} test texts",
        "",
        *(f"> {note}" for note in report.notes),
        "",
        *report_rows(report),
        "",
        "Intervals are 95 %, paired bootstrap over test texts, 1,000 draws. Latency is p50 / "
        f"p90 in milliseconds of one call with {report.environment['threads']} threads; memory "
        "is the process's peak minus what it held after its imports.",
        "",
        f"{report.environment['cpu']} ({', '.join(report.environment['cpu_flags'])}), Python "
        f"{report.environment['python']}, "
        + ", ".join(f"{k} {v}" for k, v in report.environment["packages"].items())
        + f"; recipe {report.recipe_hash}, seed {report.seed}.",
        "",
    ]
    return "\n".join(lines)


def report_rows(report: Report) -> list[str]:
    """The lines of the report's Markdown table."""
    names = [candidate.name for candidate in report.candidates]
    rows = _quality_rows(report) + _size_rows(report) + _speed_rows(report)
    return [
        f"| | {' | '.join(names)} |",
        f"| --- |{' ---: |' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _quality_rows(report: Report) -> list[list[str]]:
    candidates = report.candidates
    return [
        ["accuracy, %", *(_percent(c.accuracy) for c in candidates)],
        ["macro F1, %", *(_percent(c.macro_f1) for c in candidates)],
        [
            "change of macro F1, points",
            *(_points(c.macro_f1_change) for c in candidates),
        ],
        [
            "labels equal to float, %",
            *("" if c.agreement is None else f"{100 * c.agreement:.1f}" for c in candidates),
        ],
    ]


def _size_rows(report: Report) -> list[list[str]]:
    candidates = report.candidates
    whole = candidates[0].bytes.total
    trimmed = whole - report.trimmed_bytes
    rows = [
        [f"{part}, MB", *(f"{getattr(c.bytes, part) / MEGABYTE:.2f}" for c in candidates)]
        for part in ("embeddings", "encoder", "head", "overhead")
    ]
    rows.append(["file, MB", *(f"{c.bytes.total / MEGABYTE:.2f}" for c in candidates)])
    rows.append(["smaller than float", *(f"{whole / c.bytes.total:.2f}x" for c in candidates)])
    if report.trimmed_bytes:
        rows.append(
            ["smaller than trimmed float", *(f"{trimmed / c.bytes.total:.2f}x" for c in candidates)]
        )
    return rows


def _speed_rows(report: Report) -> list[list[str]]:
    candidates = report.candidates
    rows = [
        [
            f"{first.batch} x {first.length} tokens, ms",
            *(f"{c.latency[at].p50_ms:.2f} / {c.latency[at].p90_ms:.2f}" for c in candidates),
        ]
        for at, first in enumerate(candidates[0].latency)
    ]
    rows.append(["peak memory, MB", *(f"{c.peak_bytes / MEGABYTE:.0f}" for c in candidates)])
    rows.append(["time to open, s", *(f"{c.open_seconds:.2f}" for c in candidates)])
    return rows


def _percent(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.value:.1f} [{low:.1f}, {high:.1f}]"


def _points(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.value:+.2f} [{low:+.2f}, {high:+.2f}]"
