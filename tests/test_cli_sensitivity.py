"""`quantkit sensitivity` and `quantkit ptq --max-drop` as a user meets them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.text import Text

from quantkit.cli.progress import progress
from quantkit.closeness import FloatAnswers
from quantkit.packed import load_packed
from quantkit.sensitivity import Sensitivity
from tests.cli import Line, changes, files_in, invoke, quantized, succeed


@pytest.fixture
def copied(line: Line, tmp_path: Path) -> Line:
    """The finished line in a runs folder of the test's own."""
    return line._replace(runs=shutil.copytree(line.runs, tmp_path / "runs"))


def _analyse(line: Line, *arguments: object) -> list[object]:
    return ["sensitivity", "smsa", "--runs", line.runs, "--texts", 20, *arguments]


def _recipe(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "w4a8" / "quantkit.json").read_text())
    return found


def test_the_table_the_file_and_what_is_next(copied: Line) -> None:
    printed = succeed(*_analyse(copied))
    found = Sensitivity.load(copied.runs / "smsa" / "sensitivity-w4a8.json")
    assert (found.validation_rows, found.training_texts) == (20, 20)
    assert len(found.units) == 2 + 4 + 1  # two tables: types stay in float
    header, *rows = printed.splitlines()[: 1 + len(found.units) + 1]
    assert header.split()[:4] == ["layer", "part", "bits", "SQNR"]
    assert [row.split()[0] for row in rows[:-1]] == [unit.unit.label for unit in found.units]
    assert rows[-1].startswith("the whole model")
    assert "on 20 validation rows; KL on 20 training texts" in printed
    assert "Next: quantkit ptq smsa --bits 4 --max-drop 0.5" in printed
    assert [path.name for path in (copied.runs / "smsa").glob("sensitivity*")] == [
        "sensitivity-w4a8.json"
    ]
    assert succeed(*_analyse(copied, "--bits", 8))
    at_8 = Sensitivity.load(copied.runs / "smsa" / "sensitivity-w8a8.json")
    assert {unit.bits for unit in at_8.units} == {8}
    assert at_8.whole.divergence < found.whole.divergence


def test_a_killed_analysis_goes_on_and_a_finished_one_is_read(
    copied: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    original = FloatAnswers.closeness

    def third_is_killed(self: FloatAnswers, model: Any) -> Any:  # noqa: ANN401
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(model)
        return original(self, model)

    run = copied.runs / "smsa"
    with monkeypatch.context() as patch:
        patch.setattr(FloatAnswers, "closeness", third_is_killed)
        stopped = invoke(*_analyse(copied))
        assert (stopped.code, "Interrupted" in stopped.err) == (130, True)
        assert not (run / "sensitivity-w4a8.json").exists()
        assert (run / "sensitivity-w4a8.partial.json").is_file()
    printed = invoke(*_analyse(copied))
    assert "measuring units: 7 of 7" in printed.err
    assert not (run / "sensitivity-w4a8.partial.json").exists()
    again = invoke(*_analyse(copied))
    assert again.out == printed.out
    assert "measuring units" not in again.err


def test_progress_is_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, line in (("", "measuring: 3 of 4"), ("1", "3/4")):
        monkeypatch.setenv("FORCE_COLOR", terminal)
        monkeypatch.setenv("COLUMNS", "100")
        with progress() as report:
            report("measuring", 2, 4)
            report("measuring", 3, 4)
        assert line in Text.from_ansi(capsys.readouterr().err).plain


def test_max_drop_makes_a_model_whose_recipe_says_how(copied: Line) -> None:
    run = copied.runs / "smsa"
    printed = succeed("ptq", "smsa", "--runs", copied.runs, "--bits", 4, "--max-drop", 2)
    packed = load_packed(run / "w4a8")
    assert list((run / "w4a8" / "onnx").glob("model_q*.onnx"))
    assert "mixtures tried" in _recipe(run)["notes"][0]
    assert "decided" in _recipe(run)["notes"][1]
    for note in _recipe(run)["notes"]:
        assert f"Note: {note}" in printed
    lines = [line for line in printed.splitlines() if line.startswith(("  eight_bits", "  skip"))]
    said = yaml.safe_load("\n".join(line.strip() for line in lines)) or {}
    assert said.get("eight_bits", []) == list(packed.recipe.eight_bits)
    assert said.get("skip", ["classifier"]) == list(packed.recipe.skip)
    assert (said != {}) == ("Recipe lines" in printed)
    assert [path.name for path in run.glob("sensitivity*")] == ["sensitivity-w4a8.json"]
    refused = invoke("ptq", "smsa", "--runs", copied.runs, "--bits", 4, "--max-drop", 2)
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert refused.err.count("\n") == 1  # before any work: no line of progress


def test_max_drop_with_8_bits_leaves_parts_in_float(copied: Line) -> None:
    chosen = ["--runs", copied.runs, "--bits", 8, "--max-drop", 1e-6, "--overwrite"]
    assert "Recipe lines" in succeed("ptq", "smsa", *chosen)
    assert len(load_packed(copied.runs / "smsa" / "w8a8").recipe.skip) > 1


def test_a_checkpoint_takes_its_labels_from_the_task_of_a_recipe(
    line: Line, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("makanan itu enak\nkamar itu kotor\n" * 8, encoding="utf-8")
    model = shutil.copytree(line.runs / "smsa" / "float", tmp_path / "mine")
    chosen = ["--checkpoint", model, "--texts", texts, "--runs", tmp_path / "runs"]
    refused = invoke("ptq", *chosen, "--bits", 4, "--max-drop", 1)
    assert refused.code == 2
    assert "belongs to no task" in refused.err
    assert "--recipe RECIPE" in refused.err
    assert files_in(tmp_path / "runs") == []
    task = ["--recipe", "smsa.yaml", "--data", line.data, *changes(max_length=32)]
    assert "packed model" in succeed("ptq", *chosen, "--bits", 4, "--max-drop", 50, *task)
    assert list((tmp_path / "runs" / "mine" / "w4a8" / "onnx").glob("model_q*.onnx"))


@pytest.mark.parametrize("budget", ["0", "-0.5", "nan", "100"])
def test_a_budget_has_to_be_above_nothing(budget: str, tmp_path: Path) -> None:
    refused = invoke("ptq", "--runs", tmp_path, "--bits", 4, f"--max-drop={budget}")
    assert refused.code == 2
    assert f"--max-drop is {budget}" in refused.err
    assert "e.g. --max-drop 0.5" in refused.err
    assert files_in(tmp_path) == []


def test_mistakes_of_an_analysis_say_what_to_do(copied: Line, base: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        outcome = invoke("sensitivity", *arguments)
        assert outcome.code == 2
        return outcome.err

    runs = ["--runs", copied.runs]
    assert "holds no finished run" in refused("--runs", tmp_path / "nothing")
    assert "nothing: no such run" in refused("nothing", *runs)
    assert "bits is 5" in refused("smsa", *runs, "--bits", 5)
    assert "--texts" in refused("smsa", *runs, "--texts", 0)
    other = ["--recipe", "nergrit.yaml", "--data", quantized(base, "nergrit").data]
    assert "smsa/float answers classification" in refused("smsa", *runs, *other)
    table = tmp_path / "texts.csv"
    table.write_text("isi\n" + "".join(f"kamar {n}\n" for n in range(30)), encoding="utf-8")
    unlabelled = tmp_path / "unlabelled.yaml"
    unlabelled.write_text("{name: a, task: custom, model: b, data: {text: isi, kind: features}}")
    custom = ["--recipe", unlabelled, "--data", table]
    assert "custom has no labels" in refused("smsa", *runs, *custom)
    record = copied.runs / "smsa" / "run.json"
    values = json.loads(record.read_text())
    values["recipe"] |= {"model": "recurrent", "recurrent": {}}
    record.write_text(json.dumps(values))
    assert "is a recurrent baseline" in refused("smsa", *runs)


def test_a_new_float_model_has_no_old_analysis(copied: Line) -> None:
    succeed(*_analyse(copied))
    places = ["--data", copied.data, "--runs", copied.runs, "--overwrite"]
    values = changes(finetune__epochs=1)
    succeed("finetune", "smsa.yaml", "--model", copied.checkpoint, *places, *values)
    assert list((copied.runs / "smsa").glob("sensitivity*")) == []
