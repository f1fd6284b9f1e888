"""A report as Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from quantkit.files import write_json, write_text
from quantkit.heads import Head
from quantkit.metrics import Interval
from quantkit.report.records import CandidateReport, Report

__all__ = ["report_rows", "save_report", "to_markdown"]

MEGABYTE = 1e6
MILLION = 1e6
WIDEST = 20  # labels of a confusion matrix that is still readable as a table

# Scores that are no shares and stand as they are, not in per cent.
_PLAIN = ("pearson", "spearman", "cosine", "rmse", "mae")

_TITLES = {
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "micro_f1": "micro F1",
    "chunk_f1": "chunk F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "cosine": "cosine with float",
    "rmse": "RMSE",
    "mae": "MAE",
}

Rows = list[list[str]]


def save_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.md` into `folder`."""
    write_json(folder / "report.json", asdict(report))
    write_text(folder / "report.md", to_markdown(report))


def to_markdown(report: Report) -> str:
    """The report as Markdown: the candidates side by side, then classes and training."""
    lines = [
        f"# {report.name}: {report.task}, {report.test_rows} test rows",
        "",
        *(f"> {note}" for note in report.notes),
        "",
        *report_rows(report),
        "",
        "Intervals are 95 %, paired bootstrap over test rows, 1,000 draws. Latency is p50 / "
        f"p90 in milliseconds of one call with {report.environment['threads']} threads; memory "
        "is the process's peak minus what it held after its imports.",
        "",
        f"{report.environment['cpu']} ({', '.join(report.environment['cpu_flags'])}), Python "
        f"{report.environment['python']}, "
        + ", ".join(f"{k} {v}" for k, v in report.environment["packages"].items())
        + f"; recipe {report.recipe_hash}, seed {report.seed}.",
        "",
    ]
    for candidate in dict.fromkeys((0, len(report.candidates) - 1)):
        lines += _class_lines(report, report.candidates[candidate])
    return "\n".join([*lines, *_epoch_lines(report)])


def report_rows(report: Report) -> list[str]:
    """The lines of the report's main table."""
    rows = (
        _quality_rows(report)
        + _detail_rows(report)
        + _size_rows(report)
        + _speed_rows(report)
        + _training_rows(report)
    )
    return _table(["", *(candidate.name for candidate in report.candidates)], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is words and whose others are numbers."""
    return [
        _line(header),
        f"| --- |{' ---: |' * (len(header) - 1)}",
        *(_line(row) for row in rows),
    ]


def _line(cells: Sequence[str]) -> str:
    inner = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {inner} |" if cells[0] else f"|{inner} |"


def _quality_rows(report: Report) -> Rows:
    candidates, main = report.candidates, report.main
    rows = [
        [_titled(name), *(_interval(name, c.scores[name]) for c in candidates)]
        for name in candidates[0].scores
    ]
    unit = "" if main in _PLAIN else ", points"
    if any(c.change is not None for c in candidates):
        title = f"change of {_title(main)}{unit}"
        rows.append([title, *(_change(main, c.change) for c in candidates)])
        if any(c.beyond_training is not None for c in candidates):
            shown = (_change(main, c.beyond_training) for c in candidates)
            rows.append([f"against float, trained on{unit}", *shown])
        rows += _agreement_rows(report)
    return rows


def _agreement_rows(report: Report) -> Rows:
    kind = report.head["kind"]
    if kind == "features":  # agreement is the main score itself
        return []
    numbers = kind == "regression"
    title = "correlation with float" if numbers else "labels equal to float, %"
    show = _plain if numbers else _percent
    shares = (candidate.agreement for candidate in report.candidates)
    return [[title, *("" if share is None else show(share) for share in shares)]]


def _detail_rows(report: Report) -> Rows:
    """The scores that have no interval."""
    first = report.candidates[0]
    return [
        [_titled(name), *(_number(name)(c.table[name]) for c in report.candidates)]
        for name in first.table
        if name not in first.scores
    ]


def _size_rows(report: Report) -> Rows:
    candidates = report.candidates
    whole = candidates[0].bytes.total
    trimmed = whole - report.trimmed_bytes
    rows = [
        [f"{part}, MB", *(f"{getattr(c.bytes, part) / MEGABYTE:.2f}" for c in candidates)]
        for part in ("embeddings", "encoder", "head", "overhead")
    ]
    rows.append(["file, MB", *(f"{c.bytes.total / MEGABYTE:.2f}" for c in candidates)])
    if any(c.cache_bytes is not None for c in candidates):
        cached = (c.cache_bytes for c in candidates)
        shown = ("" if size is None else f"{size / MEGABYTE:.2f}" for size in cached)
        rows.append(["its graph in the cache, MB", *shown])
    rows.append(["smaller than float", *(f"{whole / c.bytes.total:.2f}x" for c in candidates)])
    if report.trimmed_bytes:
        rows.append(
            ["smaller than trimmed float", *(f"{trimmed / c.bytes.total:.2f}x" for c in candidates)]
        )
    rows.append(["parameters, millions", *(f"{c.parameters / MILLION:.2f}" for c in candidates)])
    return rows


def _speed_rows(report: Report) -> Rows:
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


def _training_rows(report: Report) -> Rows:
    """What training took, where it is known."""
    rows = []
    for key, title, unit in (
        ("seconds", "training, s", 1.0),
        ("validation_seconds", "of it validation, s", 1.0),
        ("peak_bytes", "peak memory of training, MB", MEGABYTE),
        ("device_peak_bytes", "peak GPU memory of training, MB", MEGABYTE),
    ):
        found = [(c.training or {}).get(key) for c in report.candidates]
        if any(value is not None for value in found):
            shown = ("" if value is None else f"{value / unit:.0f}" for value in found)
            rows.append([title, *shown])
    return rows


def _class_lines(report: Report, candidate: CandidateReport) -> list[str]:
    """Scores of each class and the confusion matrix of one candidate."""
    if not candidate.classes:
        return []
    rows = [
        [row.name or "chunk", *map(_percent, (row.precision, row.recall, row.f1)), str(row.support)]
        for row in candidate.classes
    ]
    return [
        f"## Classes, {candidate.name}",
        "",
        *_table(["class", "precision, %", "recall, %", "F1, %", "support"], rows),
        "",
        *_confusion_lines(Head.from_json(report.head).labels, candidate.confusion),
    ]


def _confusion_lines(labels: Sequence[str], confusion: list[list[int]] | None) -> list[str]:
    if confusion is None:
        return []
    if len(labels) > WIDEST:
        return [f"The confusion matrix of {len(labels)} labels is in report.json.", ""]
    rows = [[label, *map(str, row)] for label, row in zip(labels, confusion, strict=True)]
    return ["Lines are references, columns predictions.", "", *_table(["", *labels], rows), ""]


def _epoch_lines(report: Report) -> list[str]:
    """The table of the training's epochs."""
    if not report.history:
        return []
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("epoch", "epoch", "{:.0f}".format),
        ("train_loss", "training loss", _plain),
        ("validation_loss", "validation loss", _plain),
        ("validation_score", f"validation {_titled(report.main)}", _number(report.main)),
        ("lr", "learning rate", "{:.2e}".format),
        ("seconds", "s", "{:.1f}".format),
    ]
    known = [column for column in columns if column[0] in report.history[0]]
    rows = [[show(epoch[key]) for key, _, show in known] for epoch in report.history]
    return ["## Training", "", *_table([title for _, title, _ in known], rows), ""]


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _titled(name: str) -> str:
    return _title(name) if name in _PLAIN else f"{_title(name)}, %"


def _number(name: str) -> Callable[[float], str]:
    return _plain if name in _PLAIN else _percent


def _plain(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(name: str, interval: Interval) -> str:
    show = _number(name)
    return f"{show(interval.value)} [{show(interval.low)}, {show(interval.high)}]"


def _change(name: str, interval: "Interval | None") -> str:
    if interval is None:
        return ""
    unit, form = (1, "+.4f") if name in _PLAIN else (100, "+.2f")
    value, low, high = (f"{unit * x:{form}}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
