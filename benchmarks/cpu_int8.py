"""INT8 on CPUs: quantkit's file against float and against ONNX Runtime's own quantization.

    python benchmarks/cpu_int8.py --check

A BERT-base classifier with seeded random weights is written four ways, since speed depends
on the shapes and the graph but not on what the weights say:

    float             quantkit's float file, one fused attention operator a layer
    float-plain       torch.onnx.export with dynamic batch and length, the usual route
    int8              quantkit's W8A8 file by recipes/indonlu/smsa.yaml, smoothing included
    quantize_dynamic  onnxruntime.quantization.quantize_dynamic of float-plain

Every file lives in a process of its own. Rounds are interleaved, and a ratio is taken
within each round, so that a drift of the machine's speed cancels out.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bert_files import MANIFEST, RECIPE, Sizes, make_files
from harness import RESULTS, Bar, finish, ratio_interval, table
from onnx_worker import PROGRAM

from quantkit.errors import MeasurementError
from quantkit.measure import Worker, open_worker
from quantkit.recipe import load_recipe, recipe_hash
from quantkit.runtime import available_threads

CANDIDATES = ("float", "float-plain", "int8", "quantize_dynamic")
BASELINES = ("float", "float-plain", "quantize_dynamic")  # what int8 is divided by
SHAPES = ((1, 16), (1, 64), (1, 128), (8, 128))
BARS = {"float": 0.33, "float-plain": 0.33, "quantize_dynamic": 0.85}  # of int8's time at 1x128

ANSWERED = {"batch": 8, "length": 64}  # the batch whose logits are compared
ROUNDS, LEAST_ROUNDS = 9, 7
TURN_SECONDS, LEAST_REPEATS, MOST_REPEATS = 0.5, 3, 500

Times = dict[tuple[str, int, int], list[float]]  # (candidate, batch, length) -> ms per round


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files, measure them, and report."""
    options = _options(arguments)
    sizes = Sizes(
        options.layers, options.hidden, options.heads, options.intermediate, options.vocab
    )
    with _work_folder(options.work) as folder:
        multipliers = make_files(sizes, folder)
        files = {name: folder / f"{name}.onnx" for name in CANDIDATES}
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(open_worker(name, path, options.threads, PROGRAM))
                for name, path in files.items()
            }
            logits = _logits(workers, sizes.vocab)
            repeats = _repeats(workers, sizes.vocab, options.repeats)
            times = _times(workers, sizes.vocab, repeats, options.rounds)
        file_bytes = {name: path.stat().st_size for name, path in files.items()}
    shapes = {f"{b}x{n}": _shape_result(times, repeats, b, n) for b, n in SHAPES}
    _print(shapes, file_bytes)
    results = {
        "model": asdict(sizes),
        "recipe": {"name": RECIPE.name, "hash": recipe_hash(load_recipe(RECIPE))},
        "threads": options.threads or available_threads(),
        "rounds": options.rounds,
        "smoothing_multipliers": multipliers,
        "file_bytes": file_bytes,
        "largest_logit": float(np.abs(logits["float"]).max()),
        "largest_logit_difference_from_float": _differences(logits),
        "shapes": shapes,
        "table": _markdown(shapes, file_bytes),
    }
    return finish(
        "cpu_int8",
        _bars(shapes),
        results,
        check=options.check,
        folder=options.results,
        threads=options.threads,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="quantkit's INT8 file on CPUs against float and quantize_dynamic."
    )
    add, default = parser.add_argument, Sizes()
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--rounds", type=_positive, default=ROUNDS, help="interleaved rounds (%(default)s)")
    add("--repeats", type=_positive, help="timed calls per turn; default: half a second of them")
    add("--threads", type=_positive, help="per candidate; default: what the CPU quota gives")
    add("--work", type=Path, metavar="DIR", help=f"reuse files; rm {MANIFEST} makes anew")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="for cpu_int8.json")
    for name, value in asdict(default).items():
        add(f"--{name}", type=_positive, default=value, help="of the model (%(default)s)")
    options = parser.parse_args(arguments)
    if options.check and options.rounds < LEAST_ROUNDS:
        parser.error(f"--check needs at least {LEAST_ROUNDS} rounds, not {options.rounds}")
    return options


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


@contextmanager
def _work_folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


# --- measuring -----------------------------------------------------------------------


def _logits(workers: Mapping[str, Worker], vocab: int) -> dict[str, np.ndarray]:
    """Each candidate's answers on one batch; the two float files must give the same."""
    answers = {
        name: np.array(worker.ask(do="run", rows=vocab, **ANSWERED)["logits"])
        for name, worker in workers.items()
    }
    error = np.abs(answers["float"] - answers["float-plain"]).max()
    if not error <= 1e-3 * np.abs(answers["float"]).max():
        raise MeasurementError("The two float files do not compute the same model.")
    return answers


def _differences(logits: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {
        name: float(np.abs(answer - logits["float"]).max())
        for name, answer in logits.items()
        if name != "float"
    }


def _repeats(
    workers: Mapping[str, Worker], vocab: int, fixed: int | None
) -> dict[tuple[str, int, int], int]:
    """Calls per turn: `fixed`, or about half a second of them by a first timing."""
    repeats = {}
    for batch, length in SHAPES:
        for name, worker in workers.items():
            if fixed is None:
                seconds = _seconds(worker, vocab, batch, length, LEAST_REPEATS)
                fitting = round(TURN_SECONDS / float(np.median(seconds)))
                count = min(max(fitting, LEAST_REPEATS), MOST_REPEATS)
            else:
                count = fixed
            repeats[name, batch, length] = count
    return repeats


def _times(
    workers: Mapping[str, Worker],
    vocab: int,
    repeats: Mapping[tuple[str, int, int], int],
    rounds: int,
) -> Times:
    """The median milliseconds of every turn; who goes first changes from round to round."""
    times: Times = {turn: [] for turn in repeats}
    names = list(workers)
    for index in range(rounds):
        first = index % len(names)
        for batch, length in SHAPES:
            for name in names[first:] + names[:first]:
                turn = (name, batch, length)
                seconds = _seconds(workers[name], vocab, batch, length, repeats[turn])
                times[turn].append(round(float(np.median(seconds)) * 1e3, 5))
    return times


def _seconds(worker: Worker, vocab: int, batch: int, length: int, repeats: int) -> list[float]:
    answer = worker.ask(do="time", batch=batch, length=length, rows=vocab, repeats=repeats)
    seconds: list[float] = answer["seconds"]
    return seconds


# --- reporting -----------------------------------------------------------------------


def _shape_result(
    times: Times, repeats: Mapping[tuple[str, int, int], int], batch: int, length: int
) -> dict[str, Any]:
    """One shape's medians, ratios with intervals, and the rounds they come from."""
    rounds = {name: times[name, batch, length] for name in CANDIDATES}
    ratios = {}
    for name in BASELINES:
        value, low, high = ratio_interval(rounds["int8"], rounds[name])
        ratios[f"int8/{name}"] = {"value": value, "interval": [low, high]}
    return {
        "median_ms": {name: float(np.median(values)) for name, values in rounds.items()},
        "ratios": ratios,
        "repeats": {name: repeats[name, batch, length] for name in CANDIDATES},
        "round_ms": rounds,
    }


def _bars(shapes: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    bars = []
    for name, limit in BARS.items():
        ratio = shapes["1x128"]["ratios"][f"int8/{name}"]
        low, high = ratio["interval"]
        title = f"int8/{name} at 1x128"
        bars.append(Bar(title, ratio["value"], limit, "at most", (low, high)))
    return bars


def _print(shapes: Mapping[str, Mapping[str, Any]], file_bytes: Mapping[str, int]) -> None:
    """Three tables: sizes, median times, and ratios."""
    print(table(["file", "MB"], [[n, f"{size / 1e6:.1f}"] for n, size in file_bytes.items()]))
    medians = [
        [shape, *(f"{result['median_ms'][name]:.2f}" for name in CANDIDATES)]
        for shape, result in shapes.items()
    ]
    print("\n" + table(["median ms", *CANDIDATES], medians))
    ratios = [
        [shape, *(_ratio_text(result["ratios"][f"int8/{name}"]) for name in BASELINES)]
        for shape, result in shapes.items()
    ]
    print("\n" + table(["ratio", *(f"int8/{name}" for name in BASELINES)], ratios))


def _markdown(shapes: Mapping[str, Mapping[str, Any]], file_bytes: Mapping[str, int]) -> list[str]:
    """The table that the README shows."""
    ratios = [f"int8/{name}" for name in BASELINES]
    header = ["median ms", *CANDIDATES, *ratios]
    rows = [
        [
            shape,
            *(f"{result['median_ms'][name]:.1f}" for name in CANDIDATES),
            *(_ratio_text(result["ratios"][name]) for name in ratios),
        ]
        for shape, result in shapes.items()
    ]
    sizes = [f"{file_bytes[name] / 1e6:.0f} MB" for name in CANDIDATES]
    rows.append(["file", *sizes, *("" for _ in ratios)])
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _ratio_text(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{ratio['value']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
