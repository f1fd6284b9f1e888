"""What a report holds, and its JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quantkit.errors import QuantkitError
from quantkit.exporter.inspect import Components
from quantkit.files import read_json
from quantkit.measure import Latency
from quantkit.metrics import ClassScores, Interval

__all__ = ["SCHEMA", "CandidateReport", "Report"]

SCHEMA = 2


@dataclass(frozen=True)
class CandidateReport:
    """One measured model; intervals are 95 %, from 1,000 bootstrap draws over test rows.

    Scores are shares; see `quantkit.metrics.statistics` and `quantkit.metrics.scores` for
    which there are.
    """

    name: str
    file: str  # relative to the run's folder
    scores: dict[str, Interval]  # the main one first
    table: dict[str, float]  # every score of the kind
    classes: tuple[ClassScores, ...]  # labels, or types of chunks
    confusion: list[list[int]] | None  # [reference][prediction], where the kind has labels
    change: Interval | None  # of the main score against the float model, paired; None for itself
    agreement: float | None  # with the float model's answers; None for itself
    bytes: Components
    latency: tuple[Latency, ...]
    open_seconds: float
    peak_bytes: int  # of its process, minus what the imports took
    parity: dict[str, Any]  # the gate's findings on the file
    parameters: int  # of the model
    training: dict[str, Any] | None  # time and memory of the training that ended in this model
    # `change` against the float model that was trained on for as many steps, where this model
    # was trained on too: what is more than just more training.
    beyond_training: Interval | None = None
    cache_bytes: int | None = None  # of the optimized graph, where it was opened by a cache


@dataclass(frozen=True)
class Report:
    """Everything a reader needs to judge or repeat a run."""

    schema: int
    name: str
    task: str
    head: dict[str, Any]  # `Head.to_json`
    main: str  # name of the score that the model was chosen by
    recipe: dict[str, Any]
    recipe_hash: str
    environment: dict[str, Any]
    test_rows: int
    max_length: int
    seed: int
    trimmed_bytes: int  # of the float file's embeddings that no token can reach
    candidates: tuple[CandidateReport, ...]
    notes: tuple[str, ...]
    curves: tuple[dict[str, float], ...] = ()  # step, loss, lr along the training
    history: tuple[dict[str, float], ...] = ()  # one entry per epoch

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read a `report.json`.

        Raises:
            QuantkitError: another schema version, or not a report.
        """
        values = read_json(path)
        if values.get("schema") != SCHEMA:
            raise QuantkitError(
                f"{path} has schema {values.get('schema')!r}; this quantkit reads {SCHEMA}. "
                f"Measure the run again: quantkit bench"
            )
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as problem:
            raise QuantkitError(f"{path} is not a report: {problem}") from None


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)
