"""What a GPU changes of answers: candidates of `cuda_speed.py` beside the same weights on a CPU.

    python benchmarks/cuda_prepare.py tokens smsa --model M --data D --out smsa.safetensors
    python benchmarks/cuda_speed.py --work W --models M --tokens smsa.safetensors   # on the GPU
    python benchmarks/cuda_accuracy.py --task W M smsa.safetensors                  # afterwards

Give --task once for each task. W holds the answers that `cuda_speed.py` has kept, M the folders
that it read: `quantkit.load(M/w8a8)` and so on answer the same texts on this machine's CPU, once,
and both are scored on all rows. Without an ONNX file for CPUs, the torch engine answers.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cuda_candidates import CANDIDATES
from cuda_tokens import answers, load_encoded, padding_of
from harness import RESULTS, Bar, finish, table

import quantkit
from quantkit.answers import decisions
from quantkit.batching import Encoded
from quantkit.errors import CheckpointError
from quantkit.metrics import MAIN, agreement, bootstrap, paired_bootstrap, statistics
from quantkit.onnx_file import find_onnx
from quantkit.prediction import Outputs
from quantkit.worker import read_outputs, write_outputs

__all__ = ["apart", "main"]

ON_A_TASK, IN_THE_MEAN = 0.5, 0.3  # points of the main score


def main(arguments: Sequence[str] | None = None) -> int:
    """Score what is there, and hold it against the bars."""
    options = _options(arguments)
    tasks = {Path(given[-1]).stem: _task(*map(Path, given)) for given in options.task}
    rows = [
        [name, task, *_cells(entry)]
        for task, found in tasks.items()
        for name, entry in found["candidates"].items()
    ]
    print(table(["candidate", "task", "%", "on the CPU", "change", "labels equal, %"], rows))
    return finish("cuda_accuracy", _bars(tasks), tasks, check=options.check, folder=options.results)


def apart(changes: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """How far candidates are from their CPU results: on their worst task, and in their mean.

    Args:
        changes: of each candidate, task -> change of its score.

    Returns:
        The largest absolute change, and the largest mean of a candidate's absolute changes.
    """
    sizes = [np.abs(list(by_task.values())) for by_task in changes]
    worst = max((float(each.max()) for each in sizes), default=float("nan"))
    return worst, max((float(each.mean()) for each in sizes), default=float("nan"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scores of a GPU's answers beside a CPU's.")
    add = parser.add_argument
    add("--task", nargs=3, action="append", required=True, metavar=("WORK", "MODELS", "TOKENS"))
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--results", type=Path, metavar="DIR", default=RESULTS, help="for cuda_accuracy.json")
    return parser.parse_args(arguments)


def _task(work: Path, models: Path, tokens: Path) -> dict[str, Any]:
    """All candidates of one task that have answered."""
    texts = load_encoded(tokens)
    done = [name for name in CANDIDATES if (work / f"{name}.npz").is_file()]
    engines: dict[str, str] = {}
    known: dict[str, Outputs] = {}
    for source in dict.fromkeys(CANDIDATES[name][0] for name in done):
        engines[source], known[source] = _on_cpu(models / source, work, texts)
    entries = {
        name: _entry(texts, read_outputs(work / f"{name}.npz"), known[CANDIDATES[name][0]])
        for name in done
    }
    return {"rows": len(texts), "score": MAIN[texts.head.kind]} | {
        "cpu_engines": engines,
        "candidates": entries,
    }


def _on_cpu(folder: Path, work: Path, texts: Encoded) -> tuple[str, Outputs]:
    """The engine's name, and a folder's answers on this machine's CPU, kept in `work`."""
    engine = _engine(folder)
    kept = work / f"cpu-{folder.name}-{engine}.npz"
    if not kept.is_file():
        session = quantkit.load(folder, engine=engine)
        partial = work / f".{kept.name}"
        write_outputs(partial, answers(session.run, texts, padding_of(folder)))
        partial.rename(kept)
    return engine, read_outputs(kept)


def _engine(folder: Path) -> str:
    try:
        find_onnx(folder)
    except CheckpointError:
        return "torch"
    return "onnxruntime"


def _entry(texts: Encoded, found: Outputs, on_cpu: Outputs) -> dict[str, Any]:
    """One candidate's score with its interval, and its change against the CPU's."""
    head, references, main = texts.head, texts.references(), MAIN[texts.head.kind]
    here, there = decisions(head, found), decisions(head, on_cpu)
    after, before = (statistics(head, references, each)[main] for each in (here, there))
    return {
        "score": asdict(bootstrap(after)),
        "cpu": before.value,
        "change": asdict(paired_bootstrap(before, after)),
        "agreement": agreement(head, there, here),
    }


def _cells(entry: Mapping[str, Any]) -> list[str]:
    values = entry["score"]["value"], entry["cpu"], entry["agreement"]
    score, on_cpu, equal = (f"{100 * value:.2f}" for value in values)
    return [score, on_cpu, f"{100 * entry['change']['value']:+.2f}", equal]


def _bars(tasks: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    names = dict.fromkeys(name for found in tasks.values() for name in found["candidates"])
    changes = [
        {
            task: 100 * found["candidates"][name]["change"]["value"]
            for task, found in tasks.items()
            if name in found["candidates"]
        }
        for name in names
    ]
    worst, mean = apart(changes)
    return [
        Bar("points apart from the CPU, worst task", worst, ON_A_TASK, "at most"),
        Bar("the same, a candidate's mean over tasks", mean, IN_THE_MEAN, "at most"),
    ]


if __name__ == "__main__":
    sys.exit(main())
