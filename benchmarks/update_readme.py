"""Writes the tables of README.md and docs from the committed result files.

    python benchmarks/update_readme.py

A test holds them against the files, so a table cannot be edited by hand.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from units import HEADER, cells, means, tasks_of

from quantkit.files import read_json, write_text
from quantkit.report import Report, report_rows

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (\w+): (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Rewrite every block between `<!-- name: file -->` and `<!-- end -->`."""
    for page in pages():
        write_text(page, BLOCK.sub(_block, page.read_text(encoding="utf-8")))


def pages() -> list[Path]:
    """The pages that have such blocks."""
    return [ROOT / "README.md", ROOT / "docs" / "cpu_graph.md"]


def block_lines(name: str, source: str) -> list[str]:
    """The lines of a block; `source` is a file, or a pattern for several."""
    files = sorted(ROOT.glob(source))
    return _TABLES.get(name, _report)(files)


def _block(found: re.Match[str]) -> str:
    name, source = found.groups()
    return "\n".join([f"<!-- {name}: {source} -->", *block_lines(name, source), "<!-- end -->"])


def _report(files: list[Path]) -> list[str]:
    return report_rows(Report.load(files[0]))


def _speed(files: list[Path]) -> list[str]:
    lines: list[str] = read_json(files[0])["results"]["table"]
    return lines


def _indonlu(files: list[Path]) -> list[str]:
    """Each task's unit beside the published columns."""
    published = read_json(ROOT / "benchmarks" / "results" / "published_indonlu.json")
    columns = [name for name in published if name != "source"]
    units = {unit["task"]: unit for unit in map(read_json, files)}
    head = ["task", "score", "rows", "float", "int8", "change", "labels equal, %"]
    lines = [_line([*head, *(f"{column} (published)" for column in columns)])]
    lines.append("| --- | --- |" + " ---: |" * (len(head) - 2 + len(columns)))
    rows = []
    for task in published[columns[0]]:
        unit = units[task]
        rows.append([*_unit_values(unit), *(published[column][task] for column in columns)])
        shown = [unit["main"].replace("_", " "), str(unit["test_rows"])]
        lines.append(_line([task, *shown, *_numbers(rows[-1])]))
    lines.append(_line(["mean", "", "", *_numbers(np.mean(rows, axis=0).tolist())]))
    return lines


def _unit_values(unit: dict[str, Any]) -> list[float]:
    """Percent: float, int8, change, labels equal."""
    main, scores = unit["main"], unit["scores"]
    eight = scores["w8a8-ptq"]
    values = (
        scores["float"][main]["value"],
        eight[main]["value"],
        eight["change"]["value"],
        eight["agreement"],
    )
    return [100 * value for value in values]


def _numbers(row: list[float]) -> list[str]:
    signed = {2: "{:+.2f}"}
    return [signed.get(at, "{:.1f}").format(value) for at, value in enumerate(row)]


def _units(files: list[Path]) -> list[str]:
    """Means over an accuracy benchmark's units, method by method."""
    units = [read_json(file) for file in files]
    found = {name: means(units, name) for name in units[0]["scores"]}
    return [*_head(HEADER), *(_line(row) for row in cells(found))]


def _recurrent(files: list[Path]) -> list[str]:
    """Mean, lowest and highest macro F1 of each network's seeds."""
    found: dict[str, list[float]] = {}
    for unit in map(read_json, files):
        value = 100 * unit["scores"]["float"]["macro_f1"]["value"]
        found.setdefault(unit["recipe_name"], []).append(value)
    published = {
        "lstm-bidirectional": "65.4",
        "lstm": "",
        "lstm-unmasked": "21.2",
        "rnn-bidirectional": "47.3",
    }
    lines = _head(["recipe", "seeds", "macro F1, mean", "lowest", "highest", "published"])
    for name, shown in published.items():
        values = found[name]
        numbers = (np.mean(values), min(values), max(values))
        lines.append(_line([name, str(len(values)), *(f"{n:.1f}" for n in numbers), shown]))
    return lines


def _ppkm(files: list[Path]) -> list[str]:
    """The published study's columns; its recall equals its accuracy: averages weighted by class."""
    report = Report.load(files[0])
    head = ["model", "accuracy", "precision", "recall", "F1", "macro F1", "training, s", "RAM, MB"]
    lines = _head([*head, "parameters", "file, MB"])
    for candidate in report.candidates:
        table, training = candidate.table, candidate.training or {}
        keys = ("accuracy", "weighted_precision", "weighted_recall", "weighted_f1", "macro_f1")
        cells = [f"{100 * table[key]:.1f}" for key in keys]
        cells += [f"{training['seconds']:.0f}", f"{training['peak_bytes'] / 1e6:.0f}"]
        cells += [f"{candidate.parameters:,}", f"{candidate.bytes.total / 1e6:.1f}"]
        lines.append(_line([candidate.name, *cells]))
    return lines


def _overhead(files: list[Path]) -> list[str]:
    """Time of a training step as a share of the float step, and the process's memory."""
    shapes: dict[str, Any] = read_json(files[0])["results"]["shapes"]
    head = ["step"]
    for shape in shapes:
        head += [f"{shape}, ms", f"{shape} / float", f"{shape}, peak MB"]
    lines = _head(head)
    for name in next(iter(shapes.values()))["median_ms"]:
        cells = [name]
        for found in shapes.values():
            ratio, low, high = found["ratio_to_float"][name]
            shown = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
            cells += [f"{found['median_ms'][name]:.0f}", shown, f"{found['peak_mb'][name]:.0f}"]
        lines.append(_line(cells))
    return lines


def _nearness(files: list[Path]) -> list[str]:
    """Divergence of each task's answers, means over seeds, of both settings and their rivals."""
    units = [read_json(file) for file in files]
    names = list(units[0]["found"])
    lines = _head(["task", *names])
    for task in tasks_of(units):
        found = [unit["found"] for unit in units if unit["task"] == task]
        means_of = (np.mean([each[name]["divergence"] for each in found]) for name in names)
        lines.append(_line([task, *(f"{1e3 * value:.2f}" for value in means_of)]))
    return lines


def _head(cells: list[str]) -> list[str]:
    """A table's first two lines: the first column to the left, the others to the right."""
    return [_line(cells), "| --- |" + " ---: |" * (len(cells) - 1)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


_TABLES: dict[str, Callable[[list[Path]], list[str]]] = {
    "cpu_latency": _speed,
    "alternatives": _speed,
    "indonlu": _indonlu,
    "units": _units,
    "recurrent": _recurrent,
    "ppkm": _ppkm,
    "overhead": _overhead,
    "nearness": _nearness,
}


if __name__ == "__main__":
    main()
