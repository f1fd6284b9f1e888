"""Two processes under `accelerate launch` learn what one learns."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from quantkit.heads import Head
from quantkit.recipe import Finetune
from quantkit.train import TrainingResult
from quantkit.training_setup import processes_of_run
from tests.training import (
    CLASSES,
    SETTINGS,
    WORDS,
    Killed,
    kill_at,
    largest_difference,
    make_model,
    make_rows,
    run,
)

SCRIPT = """
import sys
from pathlib import Path
from tests.test_train_processes import train_in_processes

train_in_processes(Path(sys.argv[1]))
"""

ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # on CPUs, also where there are GPUs
}


@dataclass(frozen=True)
class Case:
    """A run, whose number of rows makes the last batch of an epoch too small for equal shares."""

    head: Head
    rows: int
    settings: Finetune
    resumed: bool = False


PLAIN = replace(SETTINGS, dropout=0.0)
CASES = {
    # 25 rows in batches of 8: one row is left, and the second process has none of it.
    "classification": Case(CLASSES, 25, PLAIN),
    # 27 rows: 3 are left. Of the shares of 2 and 1, in parts, one part is empty.
    "words": Case(WORDS, 27, replace(PLAIN, accumulation=3)),
    "resumed": Case(WORDS, 27, replace(PLAIN, save_every=1), resumed=True),
}


def train(
    case: Case,
    state: Path | None,
    **options: Any,  # noqa: ANN401
) -> tuple[nn.Module, TrainingResult]:
    model = make_model(case.head)
    options |= {"train": make_rows(case.rows, 0, case.head)}
    options |= {"validation": make_rows(20, 1, case.head)}
    return model, run(model, state, case.settings, resume=case.resumed, **options)


def train_in_processes(folder: Path) -> None:
    """What each of the processes does; the first one writes what came of it."""
    # As the verbs ask before anything is trained.
    assert processes_of_run().num_processes == 2
    for name, case in CASES.items():
        steps = list[int]()
        model, result = train(case, folder / name / "state", on_step=steps.append)
        if PartialState().is_main_process:
            weights = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(weights, folder / name / "model.safetensors")
            written = asdict(result) | {"made": steps}
            (folder / name / "result.json").write_text(json.dumps(written))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every case, after one began the resumed run."""
    folder = tmp_path_factory.mktemp("processes")
    for name in CASES:
        (folder / name).mkdir()
    case = CASES["resumed"]
    with pytest.raises(Killed):
        train(case, folder / "resumed/state", on_step=kill_at(6))
    script = folder / "script.py"
    script.write_text(SCRIPT)
    # `accelerate launch --cpu` starts one process alone where there is no mpirun.
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    done = subprocess.run(
        [sys.executable, *launch.split(), str(script), str(folder)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(name: str, folder: Path) -> None:
    case = CASES[name]
    model, expected = train(case, None)
    other = make_model(case.head)
    other.load_state_dict(load_file(folder / name / "model.safetensors"))
    difference, worst = largest_difference(model, other)
    assert difference < 1e-5, worst
    result = json.loads((folder / name / "result.json").read_text())
    assert (expected.processes, result["processes"]) == (1, 2)
    assert (result["best_epoch"], result["steps"]) == (expected.best_epoch, expected.steps)
    for ours, theirs in zip(expected.history, result["history"], strict=True):
        for key in ("train_loss", "validation_loss", "validation_score"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-6)
        assert (theirs["epoch"], theirs["lr"]) == (ours["epoch"], ours["lr"])
    steps = [point["step"] for point in result["curve"]]
    assert steps == [point["step"] for point in expected.curve]


def test_the_first_process_alone_writes_the_state(folder: Path) -> None:
    for name in CASES:
        found = {path.name for path in (folder / name).rglob("*")}
        expected = {"state", "state.json", "state.safetensors", "model.safetensors", "result.json"}
        assert found == expected


def test_resumed_processes_begin_where_the_one_was_killed(folder: Path) -> None:
    result = json.loads((folder / "resumed/result.json").read_text())
    assert result["made"] == [7, 8, 9, 10, 11, 12]
    assert result["best_epoch"] == 3  # so that the weights are what these steps made
