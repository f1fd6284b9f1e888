"""`quantkit qat`: from a recipe to a trained packed folder beside what it started from."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.checkpoint import load_float, save_float
from quantkit.errors import ParityError
from quantkit.packed import load_packed
from quantkit.qat_line import qat, recorded_recipe
from quantkit.recipe import Recipe, load_recipe, with_bits, with_changes
from quantkit.report import Report, to_markdown
from quantkit.runs import Run
from tests.cli import BENCH, TRAINING, Line, changes, checkpoint, invoke, succeed

QAT: dict[str, object] = {
    "finetune.epochs": 3,
    "qat.epochs": 2,
    "qat.batch_size": 16,
    "qat.lr": 1e-3,
    "qat.save_every": 3,
    "qat.distillation.relation_heads": 2,
}


@pytest.fixture(scope="module")
def trained(base: Path, line: Line) -> Line:
    """A run at W4A8 that one command has made, from fine-tuning on."""
    line = Line(base / "qat", line.data, checkpoint(base), "")
    places = ["--model", line.checkpoint, "--data", line.data, "--runs", line.runs]
    values = changes(TRAINING, BENCH, QAT)
    return line._replace(printed=succeed("qat", "smsa.yaml", "--bits", 4, *places, *values))


@pytest.fixture
def copied(trained: Line, tmp_path: Path) -> Line:
    """The finished run in a folder of the test's own."""
    return trained._replace(runs=shutil.copytree(trained.runs, tmp_path / "runs"))


@pytest.fixture
def only_float(copied: Line) -> Line:
    """The same without what was made of the float model."""
    run = Run(copied.runs / "smsa")
    run.remove_derived()
    assert run.complete
    return copied


def recipe_of(line: Line, **values: object) -> Recipe:
    named = {"model": str(line.checkpoint), **TRAINING, **QAT}
    return with_changes(with_bits(load_recipe("smsa.yaml"), 4), {**named, **values})


def test_one_command_makes_everything_and_says_where(trained: Line) -> None:
    run = trained.runs / "smsa"
    for name in (
        "float/model.safetensors",
        "float-longer/model.safetensors",
        "float-longer/training.json",
        "w4a8/onnx/model_q4.onnx",
        "w4a8-qat/quantkit.safetensors",
        "w4a8-qat/onnx/model_q4.onnx",
        "w4a8-qat/parity.json",
        "w4a8-qat/training.json",
    ):
        assert (run / name).is_file(), name
    left = [p.name for p in run.iterdir() if p.name.startswith(("training", "."))]
    assert left == []
    assert "Next: quantkit bench smsa" in trained.printed
    assert re.search(r"the file [\d.]+ %, the trained model [\d.]+ %", trained.printed)
    assert f"--model {run / 'w4a8-qat'}" in trained.printed


def test_the_integers_were_trained_and_the_record_says_how(trained: Line) -> None:
    run = Run(trained.runs / "smsa")
    start, end = (load_packed(run.folder / name).model for name in ("w4a8", "w4a8-qat"))
    before, after = start.state_dict(), end.state_dict()
    assert before.keys() == after.keys()
    moved = {name.rpartition(".")[2] for name in before if not before[name].equal(after[name])}
    assert {"codes", "scale", "bias", "weight"} <= moved
    record = run.training_of(run.folder / "w4a8-qat")
    assert record["steps"] == 2 * 8  # 120 rows in batches of 16
    assert record["settings"]["scales"] == {"name": "lsq", "lr": 1e-3}
    assert len(record["history"]) == 2
    assert 0.0 <= record["validation_score_before"] <= 1.0
    # The epoch that is nearest to the float model is kept.
    apart = [epoch["validation_divergence"] for epoch in record["history"]]
    assert record["best_epoch"] == 1 + apart.index(min(apart))
    assert record["validation_divergence_before"] > 0.0
    test = record["test"]
    assert (test["rows"], test["score"], test["model"]) == (60, "macro_f1", test["file"])
    longer = run.training_of(run.longer_folder)
    assert longer["steps"] == record["steps"]
    assert "scales" not in longer["settings"]
    assert run.training_of(run.folder / "w4a8") == run.training()
    (note,) = [n for n in load_packed(run.folder / "w4a8-qat").metadata["notes"] if "16 steps" in n]
    assert "scales lsq, teacher self, seed 0" in note


def test_the_report_holds_it_beside_its_start_and_the_float_model_trained_on(
    copied: Line,
) -> None:
    succeed("bench", "smsa", "--runs", copied.runs, *changes(BENCH))
    report = Report.load(copied.runs / "smsa" / "report.json")
    names = [each.name for each in report.candidates]
    assert names == ["float", "float, trained on", "w4a8", "w4a8-qat"]
    beyond = [each.beyond_training for each in report.candidates]
    assert beyond[:3] == [None] * 3
    last, longer = report.candidates[3], report.candidates[1]
    assert beyond[3] is not None
    expected = last.scores["macro_f1"].value - longer.scores["macro_f1"].value
    assert beyond[3].value == pytest.approx(expected)
    assert last.training is not None
    assert last.training["steps"] == 16
    shown = to_markdown(report)
    assert "| against float, trained on, points |" in shown
    assert any("16 steps" in note for note in report.notes)
    succeed("eval", copied.runs / "smsa" / "w4a8-qat")
    assert quantkit.load(copied.runs / "smsa" / "float-longer").labels


KILLED = """
import functools, itertools, os, signal, sys
from quantkit import qat_line
from quantkit.cli import main

steps, last = itertools.count(1), int(sys.argv.pop(1))

def on_step(_step):
    if next(steps) == last:
        os.kill(os.getpid(), signal.SIGKILL)

qat_line.qat = functools.partial(qat_line.qat, on_step=on_step)
main()
"""


def test_kill_9_at_random_steps_changes_no_bit(trained: Line, only_float: Line) -> None:
    """32 steps, the control's 16 first; the newest states are of every third step."""
    run = Run(only_float.runs / "smsa")
    values = changes(QAT)
    arguments = ["qat", "smsa", "--bits", "4", "--runs", str(only_float.runs), *values, "--resume"]
    for step in random.Random(0).choices(range(2, 12), k=3):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(step), *arguments],
            capture_output=True,
            text=True,
            env=os.environ,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (run.folder / "w4a8-qat").exists()
    outcome = invoke(*arguments[:-1])
    assert outcome.code == 2
    assert "was interrupted. Pass --resume" in outcome.err
    succeed(*arguments)
    for name in ("float-longer/model.safetensors", "w4a8-qat/quantkit.safetensors"):
        ours, theirs = (where / "smsa" / name for where in (only_float.runs, trained.runs))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_finished_training_is_not_made_again_unless_asked_to(copied: Line) -> None:
    outcome = invoke("qat", "smsa", "--bits", 4, "--runs", copied.runs)
    assert outcome.code == 2
    assert "w4a8-qat exists already. Pass --overwrite" in outcome.err
    longer = copied.runs / "smsa/float-longer/model.safetensors"
    made = longer.stat().st_mtime_ns
    values = changes({"qat.control": "true", "qat.scales": "{name: fixed}"})
    succeed("qat", "smsa", "--overwrite", "--runs", copied.runs, *values)
    record = json.loads((copied.runs / "smsa/w4a8-qat/training.json").read_text())
    assert record["settings"]["scales"] == {"name": "fixed"}
    assert longer.stat().st_mtime_ns == made  # its settings are the same


def test_what_a_run_was_quantized_by_is_what_is_trained(only_float: Line) -> None:
    """Also with parts that a search has kept at 8 bits."""
    runs, run = only_float.runs, Run(only_float.runs / "smsa")
    mixed = changes(eight_bits='["*.output.dense"]')
    succeed("ptq", "smsa", "--runs", runs, *mixed)
    succeed("qat", "smsa", "--runs", runs, *changes(qat__control=False))
    made_by = recorded_recipe(run.folder / "w4a8-qat")
    assert made_by is not None
    assert made_by.eight_bits == ("*.output.dense",)
    model = load_packed(run.folder / "w4a8-qat").model
    wide = "bert.encoder.layer.0.output.dense"
    module: Any = model.get_submodule(wide)
    assert module.integers.bits == 8
    assert not run.longer_folder.exists()
    outcome = invoke(
        "qat", "smsa", "--overwrite", "--runs", runs, *changes(rounding="{name: nearest}")
    )
    assert outcome.code == 2
    assert "was quantized with another rounding" in outcome.err


MISTAKES: dict[str, tuple[dict[str, object], str]] = {
    "everything on grids": ({"activations.scope": "all"}, "remove `qat`"),
    "ranges of inputs in float": (
        {"activations.bits": 16, "qat.scales": "{name: ema}"},
        "16-bit inputs stay in float",
    ),
    "zero steps": ({"qat.epochs": 0}, "qat.epochs is 0"),
    "a teacher of another task": ({"qat.teacher": "TASK"}, "answers words"),
    "a teacher of another vocabulary": ({"qat.teacher": "WORDS"}, "has a vocabulary of"),
    "no such teacher": ({"qat.teacher": "nowhere/at-all"}, "nowhere/at-all"),
    "a rate that diverges": ({"qat.lr": 1e30, "qat.scales.lr": 1e30}, "Lower qat.lr or qat.scales"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_status_2_and_nothing_trained(
    mistake: str, only_float: Line, base: Path, tmp_path: Path
) -> None:
    values, words = MISTAKES[mistake]
    if values.get("qat.teacher") == "TASK":
        values = {"qat.teacher": checkpoint(base, head="ForTokenClassification")}
    if values.get("qat.teacher") == "WORDS":
        values = {"qat.teacher": other_vocabulary(only_float, tmp_path)}
    settings = changes({**QAT, "qat.control": "false", **values})
    outcome = invoke("qat", "smsa", "--bits", 4, "--runs", only_float.runs, *settings)
    assert outcome.code == 2
    assert words in outcome.err
    assert not (only_float.runs / "smsa" / "w4a8-qat").exists()


def other_vocabulary(line: Line, folder: Path) -> Path:
    """The run's model with a tokenizer of another vocabulary."""
    model, tokenizer = load_float(line.runs / "smsa" / "float")
    tokenizer.add_tokens(["katabaru"])
    save_float(model, tokenizer, folder / "teacher")
    return folder / "teacher"


def test_a_file_that_scores_otherwise_is_not_kept(
    only_float: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that loses what was learnt must not go unnoticed: PTQ's integers, say."""
    run, recipe = (
        Run(only_float.runs / "smsa"),
        recipe_of(only_float, **{"qat.control": False, "qat.lr": 1e-2}),
    )
    monkeypatch.setattr("quantkit.qat_line.pack", lambda _trained, quantized: quantized)
    monkeypatch.setattr("quantkit.file_check.TOLERANCE_OF_FEW", 0.0)
    with pytest.raises(ParityError, match="points apart, so the file is not kept"):
        qat(recipe, run, only_float.data, shown=False)
    assert not run.qat_folder(recipe).exists()
