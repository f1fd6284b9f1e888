"""The verbs on tables of one's own, on baselines, and on what they refuse."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit.checkpoint import load_float
from quantkit.errors import DataError, OutputExistsError, RecipeError
from quantkit.pipeline import calibration_batches, export_folder, finetune, ptq, read_inputs
from quantkit.recipe import Recipe, load_recipe, with_changes
from quantkit.report import Report
from quantkit.runs import Run, find_run
from quantkit.tokenization import Inputs
from tests.cli import (
    BENCH,
    FEELINGS,
    NOUNS,
    TRAINING,
    Line,
    changes,
    checkpoint,
    feelings,
    files_in,
    finished,
    invoke,
    quantized,
    sentences,
    succeed,
    write_smsa,
    write_table,
)


def _own_table(base: Path, table: Path, *columns: object) -> Run:
    """A table's model, fine-tuned and quantized beside it."""
    places = ["--model", checkpoint(base), "--data", table, "--runs", table.parent / "runs"]
    values = changes(TRAINING, BENCH, finetune__epochs=4)
    succeed("finetune", "custom.yaml", *places, *columns, *values)
    succeed("ptq", "custom", "--runs", table.parent / "runs")
    return Run(table.parent / "runs" / "custom")


def _json_lines(file: Path, rows: list[dict[str, object]]) -> Path:
    first, *rest = (json.dumps(row) for row in rows)
    return write_table(file, first, rest)


def test_a_csv_with_columns_of_any_name(base: Path, tmp_path: Path) -> None:
    rows = [f'"{text}, ya",{label}' for text, label in feelings()]
    table = write_table(tmp_path / "mine.csv", "isi,rasa", rows)
    run = _own_table(base, table, "--text", "isi", "--label", "rasa")
    recipe = run.recipe()
    assert recipe.data is not None
    assert (recipe.task, recipe.data.text, recipe.data.label) == ("custom", "isi", "rasa")
    session = quantkit.load(run.folder / "w8a8")
    assert session.labels == tuple(sorted(FEELINGS))
    printed = succeed("eval", run.folder / "w8a8")
    assert re.search(r"accuracy +\d+\.\d\d %", printed)
    assert re.search(r"neutral +precision .* of 8$", printed, re.MULTILINE)  # a tenth of 80


def test_json_lines_of_words(base: Path, tmp_path: Path) -> None:
    rows = [
        {"kata": [word for word, _ in row], "tag": [tag for _, tag in row]} for row in sentences()
    ]
    table = _json_lines(tmp_path / "mine.jsonl", [dict(row) for row in rows])
    run = _own_table(base, table, "--tokens", "kata", "--label", "tag")
    head = quantkit.load(run.folder / "w8a8").head
    assert (head.kind, head.labels) == ("words", ("B-PERSON", "B-PLACE", "I-PLACE", "O"))
    assert "chunk_f1" in succeed("eval", run.folder / "w8a8")


def test_pairs_of_texts(base: Path, tmp_path: Path) -> None:
    rows = [f"{a} itu baik\t{b} itu baik\t{a == b}" for a in NOUNS for b in NOUNS]
    table = write_table(tmp_path / "mine.tsv", "a\tb\tsama", rows)
    run = _own_table(base, table, "--text", "a", "--text-pair", "b", "--label", "sama")
    session = quantkit.load(run.folder / "w8a8")
    assert session.labels == ("False", "True")
    one, other = session.outputs(Inputs(["kamar itu baik"] * 2, ["kamar itu baik", "harga"]))
    assert not np.allclose(one, other)


def test_several_labels_and_numbers(base: Path, tmp_path: Path) -> None:
    """Numbers are scored as such and not in per cent."""
    texts = [text for text, _ in feelings()]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    several = [f'{t},"{"x,y" if "kamar" in t else "y" if "harga" in t else ""}"' for t in texts]
    table = write_table(tmp_path / "a" / "mine.csv", "text,label", several)
    run = _own_table(base, table, *changes(data__kind="multilabel"))
    assert quantkit.load(run.folder / "w8a8").head.kind == "multilabel"
    numbers = [f"{text},{len(text) / 10}" for text in texts]
    table = write_table(tmp_path / "b" / "mine.csv", "text,label", numbers)
    run = _own_table(base, table, *changes(data__kind="regression"))
    printed = succeed("eval", run.folder / "w8a8")
    assert re.search(r"^ *rmse +\d+\.\d{4}$", printed, re.MULTILINE)
    assert " %" not in printed
    (answer,) = succeed("predict", "kamar itu", "--model", run.folder / "w8a8").splitlines()
    assert list(json.loads(answer)) == ["value"]


@pytest.mark.parametrize("slot", [{"recurrent.cell": "rnn", "recurrent.units": "[6]"}, {}])
def test_a_baseline_is_measured_and_not_quantized(
    slot: dict[str, object], base: Path, tmp_path: Path
) -> None:
    """Also one whose slot is left to its defaults."""
    values = changes(TRAINING, BENCH, slot, finetune__epochs=3, bench__lengths="[4]")
    data = write_smsa(tmp_path / "data")
    places = ["--data", data, "--runs", tmp_path / "runs", "--threads", "1"]
    printed = succeed("run", "smsa.yaml", "--model", "recurrent", *places, *values)
    run = tmp_path / "runs" / "smsa"
    report = Report.load(run / "report.json")
    assert [candidate.name for candidate in report.candidates] == ["float"]
    assert report.candidates[0].scores["macro_f1"].value > 0.9  # words alone tell the answer
    assert report.trimmed_bytes == 0
    assert f"--model {run / 'float'}" in printed
    assert succeed("predict", "kamar itu kotor", "--model", run / "float").startswith("negative")
    outcome = invoke("ptq", "smsa", "--runs", tmp_path / "runs")
    assert outcome.code == 2
    assert "recurrent baseline" in outcome.err
    assert "quantkit bench smsa" in outcome.err
    assert not (run / "w8a8").exists()


def test_texts_that_lose_their_end_are_counted(base: Path, tmp_path: Path) -> None:
    """Every text has five words, and with two special tokens at least seven tokens."""
    data = write_smsa(tmp_path)
    run = Run(tmp_path / "runs" / "smsa")
    recipe = _recipe(checkpoint(base), max_length=6)
    finetune(recipe, run, data, progress=False)
    (note,) = run.training()["notes"]
    assert note == (
        "120 of 120 training texts (100.0%) have more than 6 tokens and lose their end."
    )


def _recipe(model: Path, **values: object) -> Recipe:
    small = {"model": str(model), "finetune.epochs": 1, "finetune.batch_size": 60}
    return with_changes(load_recipe("smsa.yaml"), {**small, **values})


def test_a_finished_run_is_not_trained_again(base: Path, tmp_path: Path) -> None:
    """With `resume` neither: there is nothing to go on with, and much to lose."""
    line = finished(base)
    runs = shutil.copytree(line.runs, tmp_path / "runs")
    run = find_run("smsa", runs)
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="exists already"):
            finetune(run.recipe(), run, line.data, resume=resume)
    assert len(files_in(runs)) == len(files_in(line.runs))


def test_an_unwritable_run_is_found_before_the_first_step(base: Path, tmp_path: Path) -> None:
    data, steps = write_smsa(tmp_path / "data"), list[int]()
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="runs"):
        finetune(
            _recipe(checkpoint(base)),
            Run(tmp_path / "runs" / "smsa"),
            data,
            progress=False,
            on_step=steps.append,
        )
    assert steps == []


def test_calibration_takes_a_seeded_sample_in_batches_of_one_length(base: Path) -> None:
    model, tokenizer = load_float(checkpoint(base))
    inputs = Inputs([text for text, _ in feelings()])
    recipe = _recipe(checkpoint(base), **{"calibration.samples": 50})

    def rows(recipe: Recipe) -> list[list[int]]:
        batches = list(calibration_batches(model, tokenizer, inputs, recipe, 32))
        assert all(bool(batch["attention_mask"].all()) for batch in batches)
        assert all(len(batch["input_ids"]) <= 16 for batch in batches)
        return sorted(row for batch in batches for row in batch["input_ids"].tolist())

    taken, every = rows(recipe), tokenizer(list(inputs.first))["input_ids"]
    assert len(taken) == 50
    assert all(row in every for row in taken)
    assert taken == rows(recipe)
    assert taken != rows(with_changes(recipe, {"calibration.seed": 1}))
    with pytest.raises(DataError, match="no texts to calibrate on"):
        next(calibration_batches(model, tokenizer, Inputs([]), recipe, 32))


def test_calibration_texts_are_lines(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes("\ufeffsatu dua\r\n\r\n  tiga \n".encode())
    assert read_inputs(file, checkpoint(base)) == Inputs(["satu dua", "tiga"])
    words = quantized(base, "nergrit").runs / "nergrit" / "float"
    assert read_inputs(file, words) == Inputs([["satu", "dua"], ["tiga"]])
    for content, message in ((b"\n \n", "holds no text"), (b"\xff", "is not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_inputs(file, checkpoint(base))


def test_targets_are_known_ones(base: Path) -> None:
    with pytest.raises(RecipeError, match=r"target 'tpu' is unknown.*cpu, portable"):
        export_folder(checkpoint(base), target="tpu")


def test_a_baseline_s_recipe_is_refused_before_its_data_is_read(tmp_path: Path) -> None:
    recipe = with_changes(load_recipe("smsa.yaml"), {"model": "recurrent"})
    with pytest.raises(RecipeError, match="is a recurrent baseline"):
        ptq(recipe, Run(tmp_path / "smsa"), tmp_path / "nowhere")


def test_a_run_that_is_not_there_lists_those_that_are(base: Path) -> None:
    line: Line = finished(base)
    with pytest.raises(quantkit.QuantkitError, match=r"smas: no such run in .*there: smsa"):
        find_run("smas", line.runs)
