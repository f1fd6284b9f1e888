"""`quantkit distill`: from a fine-tuned model to a smaller run that the other verbs take."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from quantkit.checkpoint import load_float
from quantkit.distill_line import distill, student_run
from quantkit.errors import OutputExistsError
from quantkit.recipe import Recipe, load_recipe, with_changes
from quantkit.report import Report
from quantkit.runs import Run
from tests.cli import BENCH, TRAINING, Line, changes, checkpoint, invoke, succeed
from tests.training import Killed, kill_at

DISTILL = {"finetune.epochs": 3, "finetune.save_every": 3}


@pytest.fixture(scope="module")
def deep(base: Path, line: Line) -> Line:
    """SmSA's data, a checkpoint of two layers, and a folder of runs with its fine-tuned model."""
    runs = base / "distilled"
    line = Line(runs, line.data, checkpoint(base, layers=2), "")
    values = changes(TRAINING, DISTILL)
    places = ["--model", line.checkpoint, "--data", line.data, "--runs", runs]
    return line._replace(printed=succeed("distill", "smsa.yaml", *places, *values))


def recipe_of(line: Line, **values: object) -> Recipe:
    named = {"model": str(line.checkpoint), **TRAINING, **DISTILL}
    return with_changes(load_recipe("smsa.yaml"), {**named, **values})


def test_the_student_is_an_ordinary_run_of_half_the_layers(deep: Line, tmp_path: Path) -> None:
    teacher, student = Run(deep.runs / "smsa"), Run(deep.runs / "smsa-student")
    assert load_float(teacher.float_folder)[0].config.num_hidden_layers == 2
    assert load_float(student.float_folder)[0].config.num_hidden_layers == 1
    assert student.recipe().name == "smsa-student"
    (note,) = [n for n in student.training()["notes"] if "student of 1 layers" in n]
    assert "learnt from its answers and from the labels" in note
    assert "Next: quantkit bench smsa-student --beside smsa" in deep.printed
    runs = shutil.copytree(deep.runs, tmp_path / "runs")
    succeed("ptq", "smsa-student", "--runs", runs)
    succeed("ptq", "smsa", "--runs", runs)
    values = changes(BENCH)
    succeed("bench", "smsa-student", "--beside", "smsa", "--runs", runs, *values)
    report = Report.load(runs / "smsa-student" / "report.json")
    assert [each.name for each in report.candidates] == ["float", "int8", "smsa float", "smsa int8"]
    sizes = [each.parameters for each in report.candidates]
    assert sizes[0] < sizes[2]
    assert note in report.notes


def test_a_finished_student_is_not_made_again(deep: Line) -> None:
    run = Run(deep.runs / "smsa")
    with pytest.raises(OutputExistsError, match="smsa-student exists already"):
        distill(recipe_of(deep), run, deep.data, progress=False)
    outcome = invoke("distill", "smsa.yaml", "--runs", deep.runs, "--data", deep.data)
    assert outcome.code == 2
    assert "exists already" in outcome.err


def test_a_killed_distillation_ends_with_the_same_bits(deep: Line, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(deep.runs / "smsa", runs / "smsa")
    run, recipe = Run(runs / "smsa"), recipe_of(deep)
    with pytest.raises(Killed):
        distill(recipe, run, deep.data, progress=False, on_step=kill_at(5))
    with pytest.raises(OutputExistsError, match="Pass --resume"):
        distill(recipe, run, deep.data, progress=False)
    distill(recipe, run, deep.data, resume=True, progress=False)
    ours, theirs = (
        load_file(where / "smsa-student/float/model.safetensors") for where in (runs, deep.runs)
    )
    assert {name for name in ours if not ours[name].equal(theirs[name])} == set()
    assert not student_run(run).interrupted


def test_another_checkpoint_teaches_without_a_run_of_ones_own(deep: Line, tmp_path: Path) -> None:
    """Its settings may be others than fine-tuning's."""
    teacher = deep.runs / "smsa" / "float"
    values = changes(
        TRAINING,
        distill__teacher=teacher,
        distill__training__epochs=1,
        distill__distillation__hidden=0,
    )
    places = ["--data", deep.data, "--runs", tmp_path / "runs", "--name", "small"]
    printed = succeed("distill", "smsa.yaml", *places, *values)
    assert "Fine-tuned" not in printed
    student = Run(tmp_path / "runs" / "small-student")
    record = json.loads((student.folder / "run.json").read_text())
    assert len(record["training"]["history"]) == 1
    assert not (tmp_path / "runs" / "small").exists()


MISTAKES: dict[str, tuple[dict[str, object], str]] = {
    "another task": ({"distill.teacher": "OTHER"}, "answers classification (LABEL_0"),
    "no such teacher": ({"distill.teacher": "nowhere/at-all"}, "nowhere/at-all"),
    "diverging": (
        {"distill.training.lr": 1e30, "distill.training.epochs": 2},
        "distill.training.lr",
    ),
    "nothing of the teacher": (
        {f"distill.distillation.{part}": 0 for part in ("logits", "hidden", "attention")},
        "nothing of the teacher is used",
    ),
    "zero steps": ({"distill.training.epochs": 0}, "distill.training.epochs is 0"),
    "heads": ({"distill.distillation.relation_heads": 5}, "5 relation heads do not divide"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_status_2_and_no_student(
    mistake: str, deep: Line, base: Path, tmp_path: Path
) -> None:
    values, words = MISTAKES[mistake]
    other = {"OTHER": checkpoint(base)}
    settings = {path: other.get(str(value), value) for path, value in values.items()}
    runs = tmp_path / "runs"
    shutil.copytree(deep.runs / "smsa", runs / "smsa")
    outcome = invoke(
        "distill", "smsa.yaml", "--runs", runs, "--data", deep.data, *changes(settings)
    )
    assert outcome.code == 2
    assert words in outcome.err
    assert not (runs / "smsa-student" / "float").exists()


def test_a_baseline_has_no_student(deep: Line, tmp_path: Path) -> None:
    places = ["--data", deep.data, "--runs", tmp_path]
    outcome = invoke("distill", "smsa.yaml", "--model", "recurrent", *places)
    assert outcome.code == 2
    assert "recurrent baseline has no layers" in outcome.err
