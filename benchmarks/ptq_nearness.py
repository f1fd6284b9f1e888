"""How near quantkit's W8A8 and W4A16 stay to the float model, beside the nearest other tool.

    python benchmarks/ptq_nearness.py --model FOLDER --data FOLDER --runs RUNS --peers-python PYTHON

Equal labels of a few hundred rows decide nothing where a handful of labels changes. This measures
the divergence of the test rows' answers from the float model's (KL, see `closeness.divergence`)
of the same models as `ptq_accuracy.py`, whose units have to be there: of quantkit's setting and
of the rival that came nearest to it there. One JSON per unit; one that is there is left alone.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Bar, finish, ratio_interval, table
from ptq_accuracy import options_of, own_outputs, peer_outputs, prepare_peers
from units import Unit, finished, make_units

from quantkit.answers import decisions
from quantkit.closeness import divergence
from quantkit.files import read_json, write_json
from quantkit.measure import environment
from quantkit.metrics import agreement
from quantkit.prediction import Outputs

# quantkit's setting, and the tool that was nearest to it in labels or ahead in score.
PAIRS = {"w8a8": "torchao int8 dynamic", "w4a16": "onnxruntime 4-bit, best algorithm"}


def make_unit(task: str, seed: int, options: argparse.Namespace) -> None:
    """One unit's JSON, unless it is there."""
    target = options.results / f"ptq_nearness_{task}_{seed}.json"
    known = options.results / f"ptq_accuracy_{task}_{seed}.json"
    if target.is_file() or not known.is_file():
        return
    scores = read_json(known)["scores"]
    unit = Unit.make(task, seed, options)
    baseline = unit.file_outputs(unit.run.float_folder)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        prepare_peers(unit, scratch)
        for name, rival in PAIRS.items():
            found[name] = _nearness(unit, baseline, own_outputs(unit, name, scratch / name))
            variant = scores[rival]["variant"]
            theirs = peer_outputs(unit, variant, scratch, options.peers_python)["test"]
            found[rival] = {"variant": variant, **_nearness(unit, baseline, theirs)}
    write_json(
        target,
        {
            "benchmark": "ptq_nearness",
            "task": task,
            "seed": seed,
            "found": found,
            "environment": environment(1),
        },
    )
    print(task, seed, {name: f"{each['divergence']:.3g}" for name, each in found.items()})


def _nearness(unit: Unit, baseline: Outputs, outputs: Outputs) -> dict[str, float]:
    head = unit.task.head
    return {
        "divergence": divergence(head, baseline, outputs),
        "agreement": agreement(head, decisions(head, baseline), decisions(head, outputs)),
    }


def summarize(options: argparse.Namespace) -> int:
    """The median ratio of divergences over the units that are there, and its interval."""
    units = finished("ptq_nearness", options.results)
    if not units:
        print("No unit is there yet. Its models are those of ptq_accuracy.py, which goes first.")
        return 1
    bars, rows = [], []
    for name, rival in PAIRS.items():
        own, other = ([unit["found"][n]["divergence"] for unit in units] for n in (name, rival))
        ratio, low, high = ratio_interval(own, other)
        bars.append(Bar(f"{name} / {rival}: divergence", ratio, 1.0, "at most", (low, high)))
        for unit, mine, theirs in zip(units, own, other, strict=True):
            cells = f"{mine:.2e}", f"{theirs:.2e}", f"{mine / theirs:.2f}"
            rows.append([f"{unit['task']} {unit['seed']}", name, *cells])
    print(table(["unit", "setting", "divergence", "rival's", "ratio"], rows))
    results = {"units": [f"{unit['task']}_{unit['seed']}" for unit in units], "pairs": PAIRS}
    return finish("ptq_nearness", bars, results, check=options.check, folder=options.results)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(__doc__, arguments)
    make_units(make_unit, options)
    return summarize(options)


if __name__ == "__main__":
    sys.exit(main())
