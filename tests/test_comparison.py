"""`bench`: a run's files side by side, and other runs' beside them."""

import json
import shutil
from pathlib import Path

import pytest

from quantkit.comparison import bench
from quantkit.errors import DataError
from quantkit.report import Report
from quantkit.runs import Run
from tests.cli import (
    BENCH,
    TRAINING,
    Line,
    changes,
    checkpoint,
    finished,
    invoke,
    quantized,
    succeed,
)


@pytest.fixture(scope="module")
def line(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The finished run, beside it a student of one of two layers that was only fine-tuned."""
    original = finished(base)
    runs = shutil.copytree(original.runs, tmp_path_factory.mktemp("beside") / "runs")
    succeed(
        *("finetune", "smsa.yaml", "--model", checkpoint(base, layers=2), "--data", original.data),
        *("--runs", runs, "--name", "student"),
        *changes(TRAINING, BENCH, finetune__epochs=1, student="every-second-layer"),
    )
    return original._replace(runs=runs)


@pytest.fixture(scope="module")
def report(line: Line) -> Report:
    """Of the finished run with the student beside it."""
    values = changes(BENCH, bench__lengths="[4, 32, 33]")
    succeed("bench", "smsa", "--beside", "student", "--runs", line.runs, *values)
    return Report.load(line.runs / "smsa" / "report.json")


def test_another_run_gives_its_rows(report: Report, line: Line) -> None:
    assert [each.name for each in report.candidates] == ["float", "int8", "student float"]
    _, _, student = report.candidates
    assert student.file == "../student/float/onnx/model.onnx"
    assert (line.runs / "smsa" / student.file).is_file()
    written = (line.runs / "smsa" / "report.md").read_text(encoding="utf-8")
    assert "| | float | int8 | student float |" in written
    assert not (line.runs / "student" / "report.json").exists()


def test_each_candidate_is_told_of_its_own_training(report: Report, line: Line) -> None:
    plain, small, student = report.candidates
    assert student.parameters == Run(line.runs / "student").training()["parameters"]
    assert plain.training is not None
    assert student.training is not None
    assert plain.training == small.training
    assert (plain.training["steps"], student.training["steps"]) == (6 * 8, 8)
    assert len(report.history) == 6  # the run's own, not the student's


def test_a_student_is_called_one(report: Report, line: Line) -> None:
    assert any("every second layer" in note for note in report.notes)
    record = json.loads((line.runs / "student" / "run.json").read_text(encoding="utf-8"))
    assert "student of 1 layers" in record["training"]["notes"][0]
    weights = json.loads((line.runs / "student" / "float" / "config.json").read_text())
    assert weights["num_hidden_layers"] == 1


def test_lengths_over_the_limit_are_left_out(report: Report) -> None:
    """The model's position table has 32 rows."""
    found = [(entry.batch, entry.length) for entry in report.candidates[0].latency]
    assert found == [(1, 4), (1, 32), (8, 4), (8, 32)]


def test_a_run_of_another_task_is_refused(base: Path, line: Line) -> None:
    names = quantized(base, "nergrit")
    run = Run(line.runs / "smsa")
    before = (run.folder / "report.json").stat().st_mtime_ns
    with pytest.raises(DataError) as caught:
        bench(run.recipe(), run, run.data(), beside=[Run(names.runs / "nergrit")])
    assert "nergrit and answers words (I-PERSON," in str(caught.value)
    assert "classification (positive, neutral, negative)" in str(caught.value)
    assert (run.folder / "report.json").stat().st_mtime_ns == before


def test_a_run_beside_that_does_not_exist_is_named(line: Line) -> None:
    outcome = invoke("bench", "smsa", "--beside", "studnet", "--runs", line.runs)
    assert outcome.code == 2
    assert "studnet: no such run" in outcome.err
    assert "smsa, student" in outcome.err


def test_models_for_other_devices_are_left_out_and_portable_ones_measured(
    line: Line, tmp_path: Path
) -> None:
    runs = shutil.copytree(line.runs, tmp_path / "runs")
    run, cache = Run(runs / "smsa"), tmp_path / "graphs"
    succeed("ptq", "smsa", "--target", "portable", "--runs", runs)
    succeed("ptq", "smsa", "--bits", "4", "--target", "cuda", "--runs", runs)
    succeed("bench", "smsa", "--runs", runs, "--cache", cache, *changes(BENCH))
    report = Report.load(run.folder / "report.json")
    assert [each.name for each in report.candidates] == ["float", "int8", "int8-portable"]
    assert report.candidates[2].file == "w8a8-portable/onnx/portable/model_quantized.onnx"
    assert any("w4a16-cuda is not in this report" in note for note in report.notes)
    sizes = [each.cache_bytes for each in report.candidates]
    assert sorted(sizes, key=str) == sorted((p.stat().st_size for p in cache.iterdir()), key=str)
    assert "| its graph in the cache, MB |" in (run.folder / "report.md").read_text()
