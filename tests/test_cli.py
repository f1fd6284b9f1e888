"""The command line as a user meets it: one line from text to report, and what may follow."""

import json
import re
import shutil
from pathlib import Path

import pytest

from quantkit.report import Report, to_markdown
from tests.cli import (
    BENCH,
    TRAINING,
    WRITERS,
    Line,
    changes,
    files_in,
    invoke,
    quantized,
    succeed,
)

DECLARED = 260  # word rows of the small models


@pytest.fixture
def copied(line: Line, tmp_path: Path) -> Line:
    """The finished line in a runs folder of the test's own."""
    return line._replace(runs=shutil.copytree(line.runs, tmp_path / "runs"))


def _finetune(line: Line, *arguments: object) -> list[object]:
    places: list[object] = ["--data", line.data, "--runs", line.runs]
    return ["finetune", "smsa.yaml", "--model", line.checkpoint, *places, *arguments]


def _percent(printed: str, name: str) -> float:
    """A score as `eval` prints it."""
    found = re.search(rf"^ *{name} +([\d.]+) %$", printed, re.MULTILINE)
    assert found, printed
    return float(found[1])


def test_run_makes_everything_and_says_where(line: Line) -> None:
    run = line.runs / "smsa"
    for name in (
        "run.json",
        "report.json",
        "report.md",
        "float/model.safetensors",
        "float/onnx/model.onnx",
        "float/parity.json",
        "w8a8/quantkit.safetensors",
        "w8a8/quantkit.json",
        "w8a8/parity.json",
        "w8a8/onnx/model_quantized.onnx",
    ):
        assert (run / name).is_file(), name
    assert not (run / "training").exists()
    assert [path for path in run.rglob("*") if ".partial" in path.name] == []
    assert str(run / "report.json") in line.printed
    assert "Next: quantkit predict" in line.printed


def test_the_report_reads_back_and_holds_what_was_promised(line: Line) -> None:
    report = Report.load(line.runs / "smsa" / "report.json")
    plain, small = report.candidates
    assert (plain.name, small.name) == ("float", "int8")
    assert (report.test_rows, report.max_length, report.main) == (60, 32, "macro_f1")
    assert list(plain.scores) == ["macro_f1", "accuracy"]
    assert plain.scores["macro_f1"].value > 0.9  # it learned: chance is 0.33
    assert (plain.change, plain.agreement) == (None, None)
    assert small.change is not None
    assert small.agreement is not None
    assert small.agreement > 0.95
    assert small.change.low <= small.change.value <= small.change.high
    assert small.bytes.encoder < 0.5 * plain.bytes.encoder
    assert [(entry.batch, entry.length) for entry in small.latency] == [(1, 8), (8, 8)]
    assert all(0.0 < entry.p50_ms <= entry.p90_ms for entry in small.latency)
    assert all(entry.calls == 2 * 2 for entry in small.latency)
    assert small.peak_bytes > 0
    assert small.parity["passed"]
    assert small.parity["products"] > 0
    assert to_markdown(report) == (line.runs / "smsa" / "report.md").read_text(encoding="utf-8")
    assert to_markdown(report).strip() in line.printed


def test_resume_skips_what_is_done(copied: Line) -> None:
    weights = [copied.runs / "smsa" / "float" / "model.safetensors"]
    weights.append(copied.runs / "smsa" / "w8a8" / "quantkit.safetensors")
    before = [path.stat().st_mtime_ns for path in weights]
    _, *arguments = _finetune(copied, *changes(TRAINING, BENCH), "--resume")
    assert "Report:" in succeed("run", *arguments)
    assert [path.stat().st_mtime_ns for path in weights] == before


@pytest.mark.parametrize("task", WRITERS)
def test_every_kind_of_task_goes_the_whole_line(task: str, base: Path) -> None:
    made = quantized(base, task)
    kind, width = {"nergrit": ("words", 32), "casa": ("aspects", 16)}.get(
        task, ("classification", 32)
    )
    assert succeed("bench", task, "--runs", made.runs, "--threads", "1")
    report = Report.load(made.runs / task / "report.json")
    small = report.candidates[1]
    assert (report.task, report.head["kind"]) == (task, kind)
    assert report.test_rows == {"nergrit": 12, "casa": 60, "wrete": 25}[task]
    # All trimmed rows are floats as wide as the table, in ELECTRA 16 and not 32.
    reached = json.loads((made.runs / task / "w8a8" / "config.json").read_text())["vocab_size"]
    assert report.trimmed_bytes == (DECLARED - reached) * width * 4 > 0
    printed = succeed("eval", made.runs / task / "w8a8")
    for name, value in small.table.items():
        assert _percent(printed, name) == pytest.approx(100 * value, abs=0.006)
    (answer,) = succeed(
        *("predict", "budi tinggal di kota bali", "--json"),
        *("--model", made.runs / task / "w8a8"),
    ).splitlines()
    keys = {"nergrit": ["words", "labels", "scores", "spans"], "casa": ["aspects"]}
    assert list(json.loads(answer)) == keys.get(task, ["label", "score", "scores"])


def test_any_checkpoint_can_be_quantized_and_exported(line: Line, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("makanan itu enak\n\nkamar itu kotor dan buruk\n", encoding="utf-8")
    mine = shutil.copytree(line.runs / "smsa" / "float", tmp_path / "my (own) model")
    shutil.rmtree(mine / "onnx")
    chosen = ["ptq", "--checkpoint", mine, "--texts", texts, "--runs", tmp_path / "r"]
    packed = tmp_path / "r" / "my-own-model" / "w8a8"
    assert str(packed) in succeed(*chosen)
    succeed("export", mine)
    assert (mine / "onnx" / "model.onnx").is_file()
    for again in (["export", packed], ["export", mine], chosen):
        refused = invoke(*again)
        assert (refused.code, "--overwrite" in refused.err) == (2, True)
        assert invoke(*again, "--overwrite").code == 0


def test_a_run_that_exists_is_not_overwritten(line: Line) -> None:
    before = {path: path.stat().st_mtime_ns for path in files_in(line.runs)}
    for arguments in (_finetune(line), _finetune(line, "--resume"), ["run", *_finetune(line)[1:]]):
        refused = invoke(*arguments)
        assert refused.code == 2
        assert "exists already" in refused.err
        assert "--overwrite" in refused.err
    refused = invoke("ptq", "smsa", "--runs", line.runs)
    assert (refused.code, "exists already" in refused.err) == (2, True)
    assert {path: path.stat().st_mtime_ns for path in files_in(line.runs)} == before


def test_an_overwrite_that_fails_leaves_the_earlier_run(copied: Line) -> None:
    before = {path: path.read_bytes() for path in files_in(copied.runs)}
    diverging = changes(finetune__lr="1e30", finetune__gradient_clip="1e30")
    outcome = invoke(*_finetune(copied, "--overwrite", *diverging))
    assert outcome.code == 2
    assert "finetune.lr" in outcome.err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_new_float_model_removes_what_was_made_from_the_old_one(copied: Line) -> None:
    succeed(*_finetune(copied, "--overwrite", *changes(finetune__epochs=1)))
    assert sorted(path.name for path in (copied.runs / "smsa").iterdir()) == ["float", "run.json"]


def test_an_interrupted_overwrite_goes_on_with_resume(
    copied: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command `run` too: the float model that is there is the earlier one."""
    values = changes(TRAINING, BENCH, finetune__epochs=2, finetune__save_every=3)
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.train._close_epoch", _interrupt)
        outcome = invoke(*_finetune(copied, "--overwrite", *values))
    assert (outcome.code, "--resume" in outcome.err) == (130, True)
    assert (copied.runs / "smsa" / "training" / "state.json").is_file()
    _, *arguments = _finetune(copied, "--resume", *values)
    printed = succeed("run", *arguments)
    assert "Fine-tuned" in printed
    assert Report.load(copied.runs / "smsa" / "report.json").recipe["finetune"]["epochs"] == 2
    assert not (copied.runs / "smsa" / "training").exists()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_set_also_changes_the_recipe_of_a_checkpoint_and_of_a_run(
    copied: Line, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("makanan itu enak\n", encoding="utf-8")
    chosen = ["--checkpoint", copied.runs / "smsa" / "float", "--texts", texts]
    succeed("ptq", *chosen, "--runs", tmp_path, *changes(smoothing__alpha=0.75))
    succeed("ptq", "smsa", "--runs", copied.runs, "--overwrite", *changes(smoothing__alpha=0.5))
    for folder, alpha in ((tmp_path / "float", 0.75), (copied.runs / "smsa", 0.5)):
        packed = json.loads((folder / "w8a8" / "quantkit.json").read_text())
        assert {decision["smoothing"] for decision in packed["decisions"]} == {alpha}


def test_the_latest_run_and_the_newest_model_are_meant_by_default(copied: Line) -> None:
    succeed(*_finetune(copied, "--name", "second", *changes(TRAINING, finetune__epochs=1)))
    printed = succeed("ptq", "--runs", copied.runs)
    assert f"Taking the latest run: {copied.runs / 'second'}" in printed
    assert succeed("predict", "kamar itu kotor", "--runs", copied.runs) == succeed(
        "predict", "kamar itu kotor", "--model", copied.runs / "second" / "w8a8"
    )
