"""What every benchmark of this project shares: bars, intervals, tables and the result file."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantkit.files import write_json
from quantkit.measure import environment

__all__ = ["RESULTS", "Bar", "finish", "ratio_interval", "table"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bar:
    """One figure that a benchmark promises, and the limit it is held against.

    Timings on shared machines are noisy: a bar with an interval holds if the interval
    reaches the right side of the limit, and is missed only beyond doubt.
    """

    name: str
    value: float
    limit: float
    direction: Literal["at most", "at least"]
    interval: tuple[float, float] | None = None  # of the value, 95 %

    @property
    def holds(self) -> bool:
        """Whether the value, or an end of its interval, is within the limit; NaN never is."""
        low, high = self.interval or (self.value, self.value)
        return low <= self.limit if self.direction == "at most" else high >= self.limit

    def to_json(self) -> dict[str, Any]:
        """All fields and whether the bar holds; a value that is no number becomes null."""
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "interval": None if self.interval is None else list(self.interval),
            "direction": self.direction,
            "limit": self.limit,
            "holds": self.holds,
        }


def finish(
    name: str,
    bars: Sequence[Bar],
    results: Mapping[str, Any],
    *,
    check: bool,
    folder: Path = RESULTS,
    threads: int | None = None,
) -> int:
    """Write `<name>.json` in `folder`, print one line per bar, and return the exit code.

    Args:
        name: of the benchmark.
        bars: what it promises.
        results: everything else it measured.
        check: a missed bar makes the exit code 1.
        folder: made if need be.
        threads: that were measured with; default: what the CPU quota gives.
    """
    report = {
        "benchmark": name,
        "command": _command(sys.argv),
        "environment": environment(threads),
        "bars": [bar.to_json() for bar in bars],
        "results": results,
    }
    write_json(folder / f"{name}.json", report)
    if bars:
        print("\n" + table(["bar", "value", "limit", ""], [_cells(bar) for bar in bars]))
    return int(check and not all(bar.holds for bar in bars))


def ratio_interval(
    a: Sequence[float], b: Sequence[float], draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The median over rounds of a[i] / b[i], and its 95 % interval.

    The interval is a percentile bootstrap over rounds: `draws` resamples of the rounds.

    Args:
        a: one candidate's median time in each round.
        b: the other candidate's in the same rounds.
        draws: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: no rounds, or not as many of `a` as of `b`.
    """
    if not a:
        raise ValueError("a ratio needs at least one round")
    ratios = np.array([x / y for x, y in zip(a, b, strict=True)])
    picks = np.random.default_rng(seed).integers(len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of columns: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(bar: Bar) -> list[str]:
    verdict = "holds" if bar.holds else "missed"
    shown = f"{bar.value:.4g}"
    if bar.interval is not None:
        shown += f" [{bar.interval[0]:.4g}, {bar.interval[1]:.4g}]"
    return [bar.name, shown, f"{bar.direction} {bar.limit:g}", verdict]


def _command(arguments: Sequence[str]) -> str:
    """The command line as it was typed, but for absolute paths, which name one machine."""
    script, *options = arguments
    return shlex.join(["python", _portable(script), *map(_portable, options)])


def _portable(argument: str) -> str:
    """A path inside the repository relative to it; of any other absolute path, the last part."""
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    root = RESULTS.parent.parent
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return f"{option}{equals}{inside}"
