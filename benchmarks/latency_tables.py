"""What the rounds of `cpu_latency.py` say: medians, ratios with intervals, floors and bars."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from bert_sizes import operations
from harness import Bar, ratio_interval, table
from latency_files import Sizes

__all__ = ["BARS", "bars_of", "family_result", "markdown", "print_family"]

# (candidate, other, limit, shapes): a bound on the ratio of their times.
ONE, MANY = ("1x16", "1x64", "1x128"), ("8x128", "32x64")
BARS: Sequence[tuple[str, str, float, tuple[str, ...]]] = (
    ("int8", "quantize_dynamic", 0.80, ONE),
    ("int8", "quantize_dynamic", 0.85, MANY),
    ("int8-in-openvino", "quantize_dynamic", 0.80, ONE),
    ("int8-in-openvino", "quantize_dynamic", 0.85, MANY),
    ("int8", "openvino-int8", 1.0, ONE),
    ("int8-in-openvino", "openvino-int8", 1.0, (*ONE, *MANY)),
    ("4bit", "int8", 1.05, (*ONE, *MANY)),
    ("4bit", "MatMulNBits", 0.5, ("1x128",)),
)
FILE_BAR, MEMORY_BAR = 0.30, 0.45
OURS = ("int8", "int8-in-openvino", "4bit")  # what is divided by each of the others


def family_result(measured: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Medians, ratios and floors of one family."""
    rounds: Sequence[Mapping[str, Mapping[str, float]]] = measured["rounds"]
    times = {
        name: {place: [each[name][place] for each in rounds] for place in rounds[0][name]}
        for name in rounds[0]
    }
    about = measured["about"]
    return {
        "median": {
            name: {place: float(np.median(values)) for place, values in places.items()}
            for name, places in times.items()
        },
        "ratios": {f"{a}/{b}": _ratios(times[a], times[b]) for a, b in _pairs(times)},
        "floor": _floors(times, sizes),
        "bytes": measured["bytes"],
        # After opening and texts of 128 tokens one at a time, and after all shapes.
        "memory_bytes": {
            name: each["single_peak"] - each["imports"] for name, each in about.items()
        },
        "peak_bytes": {name: each["peak"] - each["imports"] for name, each in about.items()},
        "imports_bytes": {name: each["imports"] for name, each in about.items()},
        "open_seconds": {name: each["open_seconds"] for name, each in about.items()},
        "precision": {name: each["precision"] for name, each in about.items()},
        "logits_off": measured["logits"],
        "texts": measured["texts"],
        "rounds": rounds,
    }


def _pairs(times: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for ours in OURS:
        for other in times:
            if ours in times and other not in (ours, "rate"):
                yield ours, other


def _ratios(
    a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """By shape; of texts too, where a ratio of times is one of sentences per second."""
    found = {}
    for place in a:
        value, low, high = ratio_interval(a[place], b[place])
        found[place] = {"value": value, "interval": [low, high]}
    return found


def _floors(times: Mapping[str, Any], sizes: Sizes) -> dict[str, dict[str, float]]:
    """The least time of a shape's matrix products, at the rate of one of them in the same run."""
    floors = {}
    for place, seconds in times.get("rate", {}).items():
        batch, length = map(int, place.split("x"))
        single = 2.0 * batch * length * sizes.hidden * sizes.intermediate
        rate = single / (float(np.median(seconds)) * 1e-3)
        needed = operations(asdict(sizes), [length] * batch)
        floors[place] = {"rate": rate, "operations": needed, "ms": 1e3 * needed / rate}
        for name in OURS:
            if name in times:
                median = float(np.median(times[name][place]))
                floors[place][f"{name}/floor"] = median / floors[place]["ms"]
    return floors


def bars_of(families: Mapping[str, Any]) -> list[Bar]:
    """The bars of every family, as far as their candidates were measured."""
    bars = []
    for family, result in families.items():
        for name, other, limit, shapes in BARS:
            for shape in shapes:
                ratio = result["ratios"].get(f"{name}/{other}", {}).get(shape)
                if ratio is not None:
                    low, high = ratio["interval"]
                    title = f"{family} {shape}: {name}/{other}"
                    bars.append(Bar(title, ratio["value"], limit, "at most", (low, high)))
        size, memory = result["bytes"], result["memory_bytes"]
        if {"4bit", "MatMulNBits"} <= set(size):
            share = size["4bit"] / size["MatMulNBits"]
            bars.append(Bar(f"{family} file: 4bit/MatMulNBits", share, FILE_BAR, "at most"))
        if {"int8", "float"} <= set(memory) and family == "bert-base":
            share = memory["int8"] / memory["float"]
            bars.append(Bar(f"{family} memory: int8/float", share, MEMORY_BAR, "at most"))
    return bars


def print_family(family: str, result: Mapping[str, Any]) -> None:
    """Two tables: what every candidate took, and ratios."""
    header, rows = _rows(result)
    print(f"\n{family}\n" + table(header, rows))
    places = [place for place in _places(result) if not place.startswith("texts")]
    ratios = [
        [name, *(_ratio_text(each[place]) for place in places)]
        for name, each in result["ratios"].items()
    ]
    print("\n" + table(["ratio", *places], ratios))
    for place, floor in result["floor"].items():
        shown = ", ".join(f"{k} {v:.2f}" for k, v in floor.items() if k.endswith("/floor"))
        rate = floor["rate"] / 1e12
        print(f"{place}: floor {floor['ms']:.2f} ms at {rate:.2f} TOP/s; {shown}")


def markdown(families: Mapping[str, Any]) -> list[str]:
    """The table that the README shows: the first family's."""
    if not families:
        return []
    header, rows = _rows(next(iter(families.values())))
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _places(result: Mapping[str, Any]) -> list[str]:
    """Shapes, then texts."""
    return list(dict.fromkeys(place for each in result["median"].values() for place in each))


def _rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Median ms of each shape, sentences per second, MB of file and memory, seconds to open."""
    places = _places(result)
    shapes = [place for place in places if not place.startswith("texts")]
    batches = [place for place in places if place.startswith("texts")]
    rates = [f"sentences/s at batch {each.split()[1]}" for each in batches]
    header = ["median ms", *shapes, *rates, "file, MB", "memory, MB", "opens, s"]
    rows = []
    for name, median in result["median"].items():
        if name == "rate":
            continue
        cells = [name, *(f"{median[place]:.1f}" for place in shapes)]
        cells += [f"{result['texts'] / median[place]:.0f}" for place in batches]
        cells += [f"{result['bytes'][name] / 1e6:.0f}", f"{result['memory_bytes'][name] / 1e6:.0f}"]
        rows.append([*cells, f"{result['open_seconds'][name]:.2f}"])
    return header, rows


def _ratio_text(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{ratio['value']:.2f} [{low:.2f}, {high:.2f}]"
