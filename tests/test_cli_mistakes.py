"""Mistakes: status 2, one message that says what to do, no traceback, and nothing left behind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli import (
    TRAINING,
    Outcome,
    changes,
    checkpoint,
    files_in,
    invoke,
    quantized,
    succeed,
    write_casa,
    write_nergrit,
    write_smsa,
    write_table,
    write_wrete,
)


def _refused(base: Path, tmp_path: Path, recipe: str, data: Path, *more: object) -> str:
    """What `finetune` says, which must fail and leave no file in its runs folder."""
    places = ["--model", checkpoint(base), "--data", data, "--runs", tmp_path / "runs"]
    outcome = invoke("finetune", recipe, *places, *more)
    assert outcome.code == 2
    assert files_in(tmp_path / "runs") == []
    return outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "nothing.yaml"], ["no such recipe", "builtin.yaml", "indonlu/smsa.yaml"]),
        (["finetune", "mine/smsa.yaml"], ["mine/smsa.yaml: no such recipe"]),
        (["run", "."], ["no such recipe"]),
        (["finetune", "smsa.yaml", "--data", "nowhere"], ["nowhere", "indonlu"]),
        (["finetune", "custom.yaml"], ["pass --data FOLDER", "a table of your own"]),
        (["finetune", "custom.yaml", "--data", "a.csv"], ["a.csv: no such file"]),
        (["finetune", "ppkm/bert-1000.yaml"], ["pass --data FOLDER", "kaggle"]),
        (["finetune", "--set", "finetune.epohcs=3"], ["finetune.epohcs", "Did you mean `epochs`"]),
        (["finetune", "--set", "data.split.tets=1"], ["data.split.tets", "Did you mean `test`"]),
        (["finetune", "--set", "task=smas"], ["unknown task 'smas'", "Did you mean 'smsa'"]),
        (["finetune", "--set", "epochs"], ["PATH=VALUE"]),
        (["finetune", "--set", "skip=[classifier"], ["skip: '[classifier' is not YAML"]),
        (["finetune", "--text", "isi"], ["pass --data FOLDER"]),
        (["ptq", "--bits", "5"], ["bits is 5", "supports 8"]),
        (["ptq", "nothing"], ["nothing: no such run", "quantkit finetune"]),
        (["ptq", "--checkpoint", "x"], ["--texts FILE"]),
        (["ptq", "--checkpoint", "x", "--texts", "y"], ["y: no such file", "one text a line"]),
        (["ptq", "--checkpoint", "x", "--texts", "."], [".: no such file", "one text a line"]),
        (["predict", "halo"], ["holds no exported model", "quantkit ptq"]),
        (["predict", "halo", "--model", "nowhere"], ["nowhere holds no exported model"]),
        (["predict"], ["takes texts, or --file FILE"]),
        (["predict", "halo", "--file", "x"], ["takes texts, or --file FILE"]),
        (["bench"], ["holds no finished run", "quantkit run"]),
        (["bench", "nothing", "--threads", "0"], ["--threads"]),
        (["export", "nowhere"], ["nowhere"]),
        (["export", "nowhere", "--target", "tpu"], ["target 'tpu' is unknown"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["study", "nothing.yaml"], ["no such recipe", "indonlu-study.yaml"]),
        (["study", "builtin.yaml"], ["builtin.yaml: recipes: Field required"]),
        (["estimate"], ["model 'builtin' is made from its data", "--model"]),
        (["estimate", "smsa.yaml", "--devices", "0"], ["--devices"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_exit_2_and_say_what_to_do(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = invoke(*arguments)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_downloaded_says_how_to_get_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "cache"))
    chosen = ["--model", checkpoint(base), "--runs", tmp_path / "runs"]
    outcome = invoke("finetune", "smsa.yaml", *chosen)
    assert outcome.code == 2
    assert "train_preprocess.tsv could not be fetched" in outcome.err
    assert "pass --data FOLDER" in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("recipe", "write", "file", "content", "words"),
    [
        ("smsa", write_smsa, "valid_preprocess.tsv", "bagus\tpositve\n", [":1", "'positive'"]),
        ("smsa", write_smsa, "valid_preprocess.tsv", "only one column\n", [":1", "2 columns"]),
        ("smsa", write_smsa, "valid_preprocess.tsv", "", ["holds no rows"]),
        ("smsa", write_smsa, "test_preprocess.tsv", "a\tneutral\n \tneutral\n", [":2", "empty"]),
        ("smsa", write_smsa, "train_preprocess.tsv", "a\tneutral\n" * 3, ["same answer"]),
        ("nergrit", write_nergrit, "train_preprocess.txt", "budi B-PERSON\n", [":1", "TAB"]),
        ("nergrit", write_nergrit, "train_preprocess.txt", "budi\tB-PRESON\n", ["'B-PERSON'"]),
        ("casa", write_casa, "test_preprocess.csv", "sentence,fuel\n", ["column 'machine'"]),
        (
            "wrete",
            write_wrete,
            "test_preprocess.csv",
            "sent_A,sent_B,label\na,,NotEntail\n",
            [":2"],
        ),
    ],
)
def test_broken_data_names_file_and_line(
    recipe: str,
    write: Callable[[Path], Path],
    file: str,
    content: str,
    words: list[str],
    base: Path,
    tmp_path: Path,
) -> None:
    data = write(tmp_path / "data")
    (broken,) = data.rglob(file)
    broken.write_text(content, encoding="utf-8")
    message = _refused(base, tmp_path, f"{recipe}.yaml", data)
    for word in (file, *words):
        assert word in message


def test_a_cell_that_is_no_list_names_its_line(base: Path, tmp_path: Path) -> None:
    """FacQA's cells are written as Python lists; this one would be code."""
    folder = tmp_path / "data" / "facqa_qa-factoid-itb"
    folder.mkdir(parents=True)
    good = "\"['Siapa', '?']\",\"['Budi', '.']\",\"['B', 'O']\""
    bad = "\"['Siapa', '?']\",__import__('os').abort(),\"['B', 'O']\""
    for part in ("train", "valid", "test"):
        rows = [good, bad] if part == "valid" else [good]
        write_table(folder / f"{part}_preprocess.csv", "question,passage,seq_label", rows)
    message = _refused(base, tmp_path, "facqa.yaml", folder)
    assert "valid_preprocess.csv:3: the column 'passage' holds \"__import__('os')" in message
    assert "not a list of strings" in message


def test_nan_weights_in_a_checkpoint(base: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint(base), tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"][3, 4] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    message = _refused(base, tmp_path, "smsa.yaml", write_smsa(tmp_path), "--model", broken)
    assert "layer.0.output.dense.weight holds 1 values that are NaN" in message


def test_a_misspelt_recipe_key_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: a\ntask: builtin\nmodel: builtin\nwieghts: {bits: 8}\n")
    outcome = invoke("run", path, "--runs", tmp_path / "runs")
    assert outcome.code == 2
    assert "mine.yaml: unknown key wieghts" in outcome.err
    assert "`weights`" in outcome.err


def test_a_hub_name_offline_tells_the_ways_out(base: Path, tmp_path: Path) -> None:
    name = "indobenchmark/indobert-base-p1"
    message = _refused(base, tmp_path, "smsa.yaml", write_smsa(tmp_path), "--model", name)
    assert f"The model {name!r} is neither a folder nor in the local" in message
    assert "--model FOLDER" in message


def test_an_interrupted_run_asks_for_resume(base: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "smsa" / "training").mkdir(parents=True)
    message = _refused(base, tmp_path, "smsa.yaml", write_smsa(tmp_path))
    assert "was interrupted" in message
    assert "--resume" in message


def test_a_file_in_the_way_of_the_runs_is_found_before_training(base: Path, tmp_path: Path) -> None:
    data = write_smsa(tmp_path)
    (tmp_path / "runs").write_text("a file")
    message = _refused(base, tmp_path, "smsa.yaml", data)
    assert f"{tmp_path / 'runs' / 'smsa'} cannot be read or written" in message
    assert "epoch" not in message  # the progress line of the first epoch


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(base: Path, tmp_path: Path) -> None:
    data = write_smsa(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    message = _refused(base, tmp_path, "smsa.yaml", data, "--runs", tmp_path / "locked")
    assert f"{tmp_path / 'locked' / 'smsa'} cannot be read or written" in message


def test_a_model_that_was_not_quantized_yet_is_not_measured(base: Path, tmp_path: Path) -> None:
    line = quantized(base, "nergrit")
    runs = shutil.copytree(line.runs, tmp_path / "runs")
    shutil.rmtree(runs / "nergrit" / "w8a8")
    (runs / "nergrit" / "report.json").unlink(missing_ok=True)
    outcome = invoke("bench", "nergrit", "--runs", runs)
    assert outcome.code == 2
    assert "Make it first: quantkit ptq nergrit" in outcome.err
    assert not (runs / "nergrit" / "report.json").exists()


def test_training_commands_in_a_serving_installation_say_what_to_install(tmp_path: Path) -> None:
    """A real import fails: a module named torch that is none stands first on the path."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')\n")
    result = subprocess.run(
        [sys.executable, "-m", "quantkit", "finetune", "--runs", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    outcome = Outcome(result.returncode, result.stdout, result.stderr)
    assert (outcome.code, outcome.out) == (2, "")
    assert "needs torch" in outcome.err
    assert "pip install 'quantkit[train,cpu]'" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_study_of_an_unknown_task_is_no_empty_table(base: Path, tmp_path: Path) -> None:
    outcome = invoke("study", "indonlu-study.yaml", "--only", "nergit", "--results", tmp_path)
    assert outcome.code == 2
    assert "Did you mean 'nergrit'?" in outcome.err


def test_a_column_may_have_a_name_that_yaml_takes_for_a_value(base: Path, tmp_path: Path) -> None:
    rows = [f"kamar {n} itu {word},{n % 2}" for n in range(10) for word in ("bagus", "buruk")]
    table = write_table(tmp_path / "a.csv", "no,1", rows)
    columns = ["--text", "no", "--label", "1", "--runs", tmp_path / "runs"]
    chosen = ["--model", checkpoint(base), "--data", table, *columns]
    succeed("finetune", "custom.yaml", *chosen, *changes(TRAINING, finetune__epochs=1))
    assert (tmp_path / "runs" / "custom" / "run.json").is_file()
