"""The command line as a user meets it: the whole line once, then every mistake."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from quantkit.cli import main
from quantkit.data.tokenizer import train_wordpiece
from quantkit.report import Report, to_markdown

Invoke = Callable[..., tuple[int, str, str]]

WORDS = {
    "positive": ["enak", "bagus", "ramah", "puas"],
    "neutral": ["biasa", "standar", "cukup", "lumayan"],
    "negative": ["buruk", "kotor", "lambat", "kecewa"],
}
NOUNS = ["makanan", "pelayanan", "kamar", "harga", "tempat"]
QUICK = [
    *("--set", "finetune.epochs=20", "--set", "finetune.lr=3e-3", "--set", "bench.rounds=2"),
    *(
        "--set",
        "bench.repeats=2",
        "--set",
        "finetune.batch_size=16",
        "--set",
        "bench.lengths=[8]",
        "--set",
        "calibration.samples=32",
    ),
]


def _rows(label: str) -> list[str]:
    words = WORDS[label]
    return [f"{noun} itu {a} dan {b}\t{label}" for noun in NOUNS for a in words for b in words]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmSA's original layout with a few hundred made-up rows."""
    folder = tmp_path_factory.mktemp("data") / "smsa_doc-sentiment-prosa"
    folder.mkdir()
    rows = sorted(row for label in WORDS for row in _rows(label))
    parts = {"train": rows[::2], "valid": rows[1::4], "test": rows[3::4]}
    for name, lines in parts.items():
        (folder / f"{name}_preprocess.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained BERT in a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [row.partition("\t")[0] for label in WORDS for row in _rows(label)]
    tokenizer = train_wordpiece(texts, vocab_size=200)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def finished(
    data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The whole line, run once in a process of its own: its runs folder and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["run", "smsa.yaml", "--model", checkpoint, "--data", data, "--runs", runs, *QUICK]
    result = subprocess.run(
        [sys.executable, "-m", "quantkit", *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return runs, result.stdout


def test_run_makes_everything_and_says_where(finished: tuple[Path, str]) -> None:
    runs, printed = finished
    run = runs / "smsa"
    for name in (
        "run.json",
        "report.json",
        "report.md",
        "float/model.safetensors",
        "float/onnx/model.onnx",
        "w8a8/quantkit.safetensors",
        "w8a8/quantkit.json",
        "w8a8/onnx/model_quantized.onnx",
    ):
        assert (run / name).is_file(), name
    assert not (run / "training").exists()
    assert [path for path in run.rglob("*") if ".partial" in path.name] == []
    assert str(run / "report.json") in printed
    assert "Next: quantkit predict" in printed


def test_the_report_reads_back_and_holds_what_was_promised(finished: tuple[Path, str]) -> None:
    runs, printed = finished
    report = Report.load(runs / "smsa" / "report.json")
    plain, small = report.candidates
    assert (plain.name, small.name) == ("float", "int8")
    assert report.test_rows == 60
    assert plain.macro_f1.value > 0.6  # it learned something: chance is 0.33
    assert small.agreement is not None
    assert small.agreement > 0.95
    assert small.macro_f1_change is not None
    assert small.macro_f1_change.low <= small.macro_f1_change.value <= small.macro_f1_change.high
    assert small.bytes.encoder < 0.5 * plain.bytes.encoder
    assert [(entry.batch, entry.length) for entry in small.latency] == [(1, 8), (8, 8)]
    assert all(0.0 < entry.p50_ms <= entry.p90_ms for entry in small.latency)
    assert all(entry.calls == 4 for entry in small.latency)
    assert small.peak_bytes > 0
    assert small.parity["passed"]
    assert small.parity["products"] > 0
    assert report.trimmed_bytes > 0
    assert to_markdown(report) == (runs / "smsa" / "report.md").read_text(encoding="utf-8")
    assert to_markdown(report).strip() in printed


def test_eval_scores_the_test_split(finished: tuple[Path, str], invoke: Invoke) -> None:
    runs, _ = finished
    code, out, _ = invoke("eval", "--runs", runs)
    report = Report.load(runs / "smsa" / "report.json")
    assert code == 0
    scores = dict(line.split()[:2] for line in out.splitlines() if line.endswith("%"))
    assert float(scores["macro_f1"]) == pytest.approx(
        100 * report.candidates[1].macro_f1.value, abs=0.01
    )
    assert "recall_positive" in scores


def test_predict_answers_in_order(finished: tuple[Path, str], invoke: Invoke) -> None:
    runs, _ = finished
    texts = ["makanan itu enak dan bagus", "kamar itu kotor dan buruk"]
    code, out, _ = invoke("predict", *texts, "--runs", runs)
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == texts
    assert [line[0] for line in lines] == ["positive", "negative"]


def test_resume_skips_what_is_done(
    finished: tuple[Path, str], data: Path, checkpoint: Path, invoke: Invoke
) -> None:
    runs, _ = finished
    before = (runs / "smsa" / "float" / "model.safetensors").stat().st_mtime_ns
    code, out, _ = invoke(
        *("run", "smsa.yaml", "--model", checkpoint, "--data", data, "--runs", runs, *QUICK),
        "--resume",
    )
    assert code == 0
    assert "Report:" in out
    assert (runs / "smsa" / "float" / "model.safetensors").stat().st_mtime_ns == before


def test_any_checkpoint_can_be_quantized_and_exported(
    finished: tuple[Path, str], tmp_path: Path, invoke: Invoke
) -> None:
    runs, _ = finished
    texts = tmp_path / "texts.txt"
    texts.write_text("makanan itu enak\n\nkamar itu kotor dan buruk\n", encoding="utf-8")
    mine = tmp_path / "mine"
    shutil.copytree(runs / "smsa" / "float", mine)
    shutil.rmtree(mine / "onnx")
    code, out, _ = invoke("ptq", "--checkpoint", mine, "--texts", texts, "--runs", tmp_path / "r")
    assert code == 0
    packed = tmp_path / "r" / "mine" / "w8a8"
    assert str(packed) in out
    code, out, _ = invoke("export", mine)
    assert code == 0
    assert (mine / "onnx" / "model.onnx").is_file()
    code, _, err = invoke("export", packed)
    assert code == 2
    assert "--overwrite" in err
    assert invoke("export", packed, "--overwrite")[0] == 0


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def test_a_run_that_exists_is_not_overwritten(
    finished: tuple[Path, str], data: Path, checkpoint: Path, invoke: Invoke
) -> None:
    runs, _ = finished
    before = (runs / "smsa" / "run.json").read_text()
    code, _, err = invoke(
        "finetune", "smsa.yaml", "--model", checkpoint, "--data", data, "--runs", runs
    )
    assert code == 2
    assert "exists already" in err
    assert "--overwrite" in err
    assert (runs / "smsa" / "run.json").read_text() == before
    code, _, err = invoke("ptq", "smsa", "--runs", runs)
    assert code == 2
    assert "exists already" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "nothing.yaml"], ["no such recipe", "builtin.yaml"]),
        (["finetune", "smsa.yaml"], ["pass --data FOLDER"]),
        (["finetune", "smsa.yaml", "--data", "nowhere"], ["nowhere", "indonlu"]),
        (["finetune", "--set", "finetune.epohcs=3"], ["finetune.epohcs", "Did you mean `epochs`"]),
        (["finetune", "--set", "epochs"], ["PATH=VALUE"]),
        (["ptq", "--bits", "5"], ["bits is 5", "supports 8"]),
        (["ptq", "nothing"], ["nothing: no such run", "quantkit finetune"]),
        (["ptq", "--checkpoint", "x"], ["--texts FILE"]),
        (["predict", "halo"], ["holds no exported model", "quantkit ptq"]),
        (["predict", "halo", "--model", "nowhere"], ["nowhere holds no exported model"]),
        (["bench"], ["holds no finished run", "quantkit run"]),
        (["export", "nowhere"], ["nowhere"]),
        (["export", "nowhere", "--target", "tpu"], ["supports 'cpu'"]),
        (["eval", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_exit_2_and_say_what_to_do(
    arguments: list[str],
    words: list[str],
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke(*arguments)
    assert code == 2
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_label_names_file_and_line(
    data: Path, checkpoint: Path, tmp_path: Path, invoke: Invoke
) -> None:
    broken = tmp_path / "data" / "smsa_doc-sentiment-prosa"
    shutil.copytree(data / "smsa_doc-sentiment-prosa", broken)
    file = broken / "valid_preprocess.tsv"
    file.write_text("bagus\tpositve\n", encoding="utf-8")
    arguments = ["finetune", "smsa.yaml", "--model", checkpoint, "--data", broken.parent]
    code, _, err = invoke(*arguments, "--runs", tmp_path / "runs")
    assert code == 2
    assert "valid_preprocess.tsv:1" in err
    assert "positive" in err
    file.write_text("only one column\n", encoding="utf-8")
    code, _, err = invoke(*arguments, "--runs", tmp_path / "runs")
    assert code == 2
    assert "valid_preprocess.tsv:1" in err
    assert _files_in(tmp_path / "runs") == []


def test_nan_weights_in_a_checkpoint(
    data: Path, checkpoint: Path, tmp_path: Path, invoke: Invoke
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"][3, 4] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, _, err = invoke(
        *("finetune", "smsa.yaml", "--model", broken, "--data", data),
        *("--runs", tmp_path / "runs"),
    )
    assert code == 2
    assert "layer.0.output.dense.weight holds 1 values that are NaN" in err
    assert _files_in(tmp_path / "runs") == []


def test_a_misspelt_recipe_key_names_the_file(tmp_path: Path, invoke: Invoke) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: a\ntask: builtin\nmodel: builtin\nwieghts: {bits: 8}\n")
    code, _, err = invoke("run", path, "--runs", tmp_path / "runs")
    assert code == 2
    assert "mine.yaml: unknown key wieghts" in err
    assert "`weights`" in err


def test_a_hub_name_offline_tells_the_ways_out(data: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, _, err = invoke("finetune", "smsa.yaml", "--data", data, "--runs", tmp_path / "runs")
    assert code == 2
    assert "indobenchmark/indobert-base-p1" in err
    assert "--model FOLDER" in err
    assert _files_in(tmp_path / "runs") == []


def test_an_interrupted_run_asks_for_resume(
    data: Path, checkpoint: Path, tmp_path: Path, invoke: Invoke
) -> None:
    training = tmp_path / "runs" / "smsa" / "training"
    training.mkdir(parents=True)
    (training / "state.json").write_text(json.dumps({}))
    code, _, err = invoke(
        *("finetune", "smsa.yaml", "--model", checkpoint, "--data", data),
        *("--runs", tmp_path / "runs"),
    )
    assert code == 2
    assert "--resume" in err


def test_an_overwrite_that_fails_leaves_the_earlier_run(
    finished: tuple[Path, str], data: Path, checkpoint: Path, tmp_path: Path, invoke: Invoke
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished[0], runs)
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    code, _, err = invoke(
        *("finetune", "smsa.yaml", "--model", checkpoint, "--data", data, "--runs", runs),
        *("--overwrite", "--set", "finetune.lr=1e30", "--set", "finetune.gradient_clip=1e30"),
    )
    assert code == 2
    assert "finetune.lr" in err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_new_float_model_removes_what_was_made_from_the_old_one(
    finished: tuple[Path, str], data: Path, checkpoint: Path, tmp_path: Path, invoke: Invoke
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished[0], runs)
    code, _, _ = invoke(
        *("finetune", "smsa.yaml", "--model", checkpoint, "--data", data, "--runs", runs),
        *("--overwrite", "--set", "finetune.epochs=1"),
    )
    assert code == 0
    assert sorted(path.name for path in (runs / "smsa").iterdir()) == ["float", "run.json"]


def test_training_commands_in_a_serving_installation_say_what_to_install(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("quantkit.recipe.load_recipe", missing)
    code, _, err = invoke("finetune", "--runs", tmp_path)
    assert code == 2
    assert "needs torch" in err
    assert "pip install 'quantkit[train,cpu]'" in err


def test_set_also_changes_the_recipe_of_a_checkpoint_and_of_a_run(
    finished: tuple[Path, str], tmp_path: Path, invoke: Invoke
) -> None:
    runs, _ = finished
    texts = tmp_path / "texts.txt"
    texts.write_text("makanan itu enak\n", encoding="utf-8")
    chosen = ["--checkpoint", runs / "smsa" / "float", "--texts", texts, "--runs", tmp_path]
    code, _, _ = invoke("ptq", *chosen, "--set", "smoothing.alpha=0.75")
    assert code == 0
    packed = json.loads((tmp_path / "float" / "w8a8" / "quantkit.json").read_text())
    assert {decision["alpha"] for decision in packed["decisions"]} == {0.75}
    code, _, err = invoke("ptq", "smsa", "--runs", runs, "--set", "smoothing")
    assert code == 2
    assert "PATH=VALUE" in err
