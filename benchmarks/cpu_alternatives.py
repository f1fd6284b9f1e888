"""Which graph is fastest on CPUs: alternatives to quantkit's own, one decision at a time.

    python benchmarks/cpu_alternatives.py --work FOLDER    # needs the extra `dev`

BERT-base with random weights, INT8 by `recipes/indonlu/smsa.yaml`. Each alternative has a process
of its own; rounds are interleaved, and ratios to quantkit's graph are taken within each
round. --clock cpu counts what all threads of a process used, which other work on the machine
disturbs less than the wall's clock. Writes `cpu_alternatives.json`, of which `update_readme.py`
makes the table in docs/cpu_graph.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import RESULTS, finish, ratio_interval, table
from latency_files import NUMBERS, Environments, Sizes, make
from latency_graphs import BOUNDS, GRAPHS, fused
from latency_rounds import Clock, logits_off, repeats_of, round_of
from latency_tokens_first import tokens_first
from latency_worker import program

from quantkit.files import new_file, write_json
from quantkit.measure import open_worker
from quantkit.runtime import available_threads

OWN = "Attention of opset 23 (quantkit)"
SETTINGS = {
    "no memory arena": "onnx-no-arena",
    "no spinning": "onnx-no-spinning",
    "no prepacked weights": "onnx-no-prepacking",
    "dynamic_block_base 4": "onnx-small-blocks",
}
PEER = "quantize_dynamic"
SHAPES = ((1, 16), (1, 128), (8, 128), (32, 64))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the graphs, measure them, and report."""
    options = _options(arguments)
    sizes = Sizes().changed(options)
    opened = _files(sizes, options.work)
    clock: Clock = "cpu_seconds" if options.clock == "cpu" else "seconds"
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(open_worker(name, path, options.threads, program(engine)))
            for name, (path, engine) in opened.items()
        }
        far = logits_off(workers, sizes.vocab)
        repeats = repeats_of(workers, sizes.vocab, SHAPES)
        if options.repeats:
            repeats = dict.fromkeys(repeats, options.repeats)
        rounds = []
        for index in range(options.rounds):
            rounds.append(round_of(index, workers, sizes.vocab, repeats, clock))
            write_json(options.work / "alternatives-rounds.json", {"rounds": rounds})
    found = {name: _compared(name, rounds) | {"logits_off": far[name]} for name in opened}
    rows = [_row(name, result) for name, result in found.items()]
    print(table(_HEADER, rows))
    lines = [_HEADER, ["---", *("---:" for _ in _HEADER[1:])], *rows]
    results = {
        "model": asdict(sizes),
        "clock": clock,
        "rounds": options.rounds,
        "alternatives": found,
        "table": [f"| {' | '.join(line)} |" for line in lines],
    }
    return finish(
        "cpu_alternatives",
        [],
        results,
        check=False,
        folder=options.results,
        threads=options.threads,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Alternatives to quantkit's graph on CPUs.")
    add = parser.add_argument
    add("--work", type=Path, required=True, metavar="DIR", help="keeps files")
    add("--rounds", type=int, default=9, help="interleaved rounds (%(default)s)")
    add("--repeats", type=int, help="calls per turn; default: 0.4 seconds of them")
    add("--threads", type=int, default=available_threads(), help="per candidate")
    add("--clock", choices=("wall", "cpu"), default="wall")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="for cpu_alternatives.json")
    for name in NUMBERS:
        add(f"--{name}", type=int, help="of the model; default: IndoBERT-base's")
    return parser.parse_args(arguments)


def _files(sizes: Sizes, work: Path) -> dict[str, tuple[Path, str]]:
    """The file and the engine of every alternative."""
    folder = work / "bert-base"
    files = {
        name: (make(model, sizes, folder, Environments()) / "model.onnx", "onnx")
        for name, model in {OWN: "int8", PEER: PEER}.items()
    }
    own, _ = files[OWN]
    for name, change in (
        GRAPHS | {"tokens first": lambda model: tokens_first(fused(model))}
    ).items():
        path = folder / "alternatives" / f"{name.replace(' ', '-')}.onnx"
        with new_file(path) as partial:
            onnx.save_model(change(onnx.load(own)), partial)
        files[name] = path, "onnx"
    return files | {name: (own, engine) for name, engine in SETTINGS.items()}


def _compared(name: str, rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for batch, length in SHAPES:
        shape = f"{batch}x{length}"
        times, own = ([each[which][shape] for each in rounds] for which in (name, OWN))
        value, low, high = ratio_interval(times, own)
        median = float(np.median(times))
        result[shape] = {"median_ms": median, "ratio": value, "interval": [low, high]}
    return result


_HEADER = ["alternative", *(f"{b}x{n}, ms" for b, n in SHAPES), *(f"{b}x{n}" for b, n in SHAPES)]


def _row(name: str, result: Mapping[str, Any]) -> list[str]:
    shapes = [result[f"{batch}x{length}"] for batch, length in SHAPES]
    ratios = (f"{s['ratio']:.2f} [{s['interval'][0]:.2f}, {s['interval'][1]:.2f}]" for s in shapes)
    shown = f"{name} (bound)" if name in BOUNDS else name
    return [shown, *(f"{s['median_ms']:.1f}" for s in shapes), *ratios]


if __name__ == "__main__":
    sys.exit(main())
