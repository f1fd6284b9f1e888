"""Studies: units that are files, a table that follows from them, and mistakes before hours."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantkit.algorithms.smoothquant import SmoothQuant
from quantkit.errors import RecipeError
from quantkit.files import write_json
from quantkit.recipe import Recipe
from quantkit.study import Study, load_study, run_study, study_rows, unit_file
from tests.cli import (
    BENCH,
    TRAINING,
    changes,
    checkpoint,
    files_in,
    invoke,
    succeed,
    write_nergrit,
    write_wrete,
)

SEEDS = (3, 4)
METHODS = {
    "full": {"activations.scope": "all", "smoothing": {"name": "none"}},
    "half": {"smoothing.alpha": 0.5},
}
VALUES = {**TRAINING, **BENCH, "finetune.epochs": 1, "finetune.save_every": 1}


class Killed(Exception):  # noqa: N818
    """Stands for a kill; no code of quantkit may catch it."""


class Place:
    """A study of two tasks, one method and two seeds, its data and where its results go."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.file, self.data, self.model = folder / "study.yaml", folder / "data", model
        self.results, self.runs = folder / "results", folder / "runs"
        self.write(changes={**VALUES, "model": str(model)})
        write_nergrit(self.data)
        write_wrete(self.data)

    def write(self, **values: object) -> None:
        """The study file; `values` replace what it says."""
        study = {
            "name": "tiny",
            "recipes": ["nergrit.yaml", "indonlu/wrete.yaml"],
            "seeds": list(SEEDS),
            "changes": VALUES,
            "methods": {"half": {"smoothing.alpha": 0.5}},
        }
        self.file.write_text(yaml.safe_dump({**study, **values}), encoding="utf-8")

    def load(self) -> Study:
        return load_study(self.file, {})

    def run(self, *only: str) -> list[str]:
        """Which units began."""
        said: list[str] = []
        run_study(self.load(), self.results, self.runs, self.data, only=only, say=said.append)
        return said

    def units(self) -> dict[str, dict[str, Any]]:
        return {file.stem: json.loads(file.read_text()) for file in self.results.glob("*.json")}


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path, checkpoint(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, str]:
    """The whole study by the command, and what that said."""
    model = checkpoint(tmp_path_factory.getbasetemp())
    place = Place(tmp_path_factory.mktemp("study"), model)
    place.write(changes={**VALUES, "model": str(model)}, methods=METHODS)
    return place, succeed(*_command(place))


def _command(place: Place, *more: object) -> list[object]:
    places = ["--data", place.data, "--results", place.results, "--runs", place.runs]
    return ["study", place.file, *places, *more]


def test_every_unit_is_a_file(done: tuple[Place, str]) -> None:
    place, printed = done
    names = [f"tiny_{task}_{seed}" for task in ("nergrit", "wrete") for seed in SEEDS]
    units = place.units()
    assert sorted(units) == names
    assert printed.startswith("nergrit, seed 3\nnergrit, seed 4\nwrete, seed 3\nwrete, seed 4\n| ")
    assert printed.endswith(f"Results: {place.results}\n")
    assert files_in(place.runs) == []  # models are removed when their result is there
    for name, unit in units.items():
        assert name == f"{unit['study']}_{unit['recipe_name']}_{unit['seed']}"
        assert unit["recipe"]["finetune"]["seed"] == unit["seed"]
        assert unit["recipe"]["model"] == place.model.name  # no path of the machine
        assert unit["recipe"]["smoothing"]["alpha"] == "auto"  # the method's change is not in it
        assert list(unit["scores"]) == ["float", "full", "half"]
        assert unit["methods"] == METHODS
        assert unit["test_rows"] == {"nergrit": 12, "wrete": 25}[unit["task"]]
        assert 0 < unit["scores"]["half"]["bytes"] < unit["scores"]["float"]["bytes"]
        assert unit["scores"]["full"]["bytes"] is None  # simulated: there is no file
        assert unit["training"]["steps"] == {"nergrit": 1, "wrete": 2}[unit["task"]]


def test_changes_are_those_of_the_scores(done: tuple[Place, str]) -> None:
    for unit in done[0].units().values():
        plain, *others = unit["scores"].values()
        main = {"nergrit": "chunk_f1", "wrete": "macro_f1"}[unit["task"]]
        assert unit["main"] == main
        for other in others:
            difference = other[main]["value"] - plain[main]["value"]
            assert other["change"]["value"] == pytest.approx(difference)
            assert other["change"]["low"] <= difference <= other["change"]["high"]
            assert 0.0 <= other["agreement"] <= 1.0
        assert {"change", "agreement"}.isdisjoint(plain)


def test_the_table_says_what_is_simulated(done: tuple[Place, str]) -> None:
    head = next(line for line in done[1].splitlines() if line.startswith("| recipe"))
    assert head.split(" | ")[4:] == [
        "full (simulated): %",
        "full (simulated): change",
        "full (simulated): labels equal, %",
        "half: %",
        "half: change",
        "half: labels equal, % |",
    ]


def test_a_second_run_makes_nothing(done: tuple[Place, str]) -> None:
    place, printed = done
    before = {file: file.stat().st_mtime_ns for file in files_in(place.results)}
    again = succeed(*_command(place))
    assert again == printed[printed.index("| recipe |") :]
    assert {file: file.stat().st_mtime_ns for file in files_in(place.results)} == before
    assert files_in(place.runs) == []


def test_a_kill_between_units_goes_on_with_the_next(place: Place) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise Killed

    with pytest.raises(Killed):
        run_study(place.load(), place.results, place.runs, place.data, only=["wrete"], say=say)
    assert list(place.units()) == ["tiny_wrete_3"]
    assert place.run("wrete") == ["wrete, seed 4"]
    assert sorted(place.units()) == ["tiny_wrete_3", "tiny_wrete_4"]


def test_a_kill_inside_a_unit_does_not_train_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fine-tuned model is done, its quantization is not."""

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("quantkit.quantized_folder.quantize", kill)
        with pytest.raises(Killed):
            place.run("nergrit")
    run = place.runs / "tiny" / "nergrit-3"
    assert (run / "run.json").is_file()
    assert place.units() == {}
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.pipeline.train_model", kill)  # of the next unit
        with pytest.raises(Killed):
            place.run("nergrit")
    assert list(place.units()) == ["tiny_nergrit_3"]
    assert not run.exists()
    assert place.run("nergrit") == ["nergrit, seed 4"]


def _unit(float_score: float, score: float, change: float, agreement: float) -> dict[str, Any]:
    half = {"f1": {"value": score}, "change": {"value": change}, "agreement": agreement}
    return {"main": "f1", "scores": {"float": {"f1": {"value": float_score}}, "half": half}}


def test_the_table_is_the_mean_over_seeds_and_then_over_recipes(place: Place) -> None:
    study = place.load()
    units = {
        ("nergrit", 3): _unit(0.80, 0.78, -0.02, 0.90),
        ("nergrit", 4): _unit(0.70, 0.74, +0.04, 1.00),
        ("wrete", 3): _unit(0.50, 0.4876, -0.0124, 0.991),
    }
    for (task, seed), unit in units.items():
        write_json(unit_file(study, task, seed, place.results), unit)
    head, rule, *rows = study_rows(study, place.results)
    assert head.split(" | ")[:4] == ["| recipe", "score", "seeds", "float, %"]
    assert head.split(" | ")[4:] == ["half: %", "half: change", "half: labels equal, % |"]
    assert rule == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert rows == [
        "| nergrit | f1 | 2 | 75.0 | 76.0 | +1.00 | 95.0 |",
        "| wrete | f1 | 1 | 50.0 | 48.8 | -1.24 | 99.1 |",
        "| mean |  |  | 62.5 | 62.4 | -0.12 | 97.0 |",
    ]


def test_recipes_without_results_have_no_row(place: Place) -> None:
    study = place.load()
    assert len(study_rows(study, place.results)) == 2
    write_json(unit_file(study, "wrete", 4, place.results), _unit(0.5, 0.5, 0.0, 1.0))
    assert study_rows(study, place.results)[2:] == [
        "| wrete | f1 | 1 | 50.0 | 50.0 | +0.00 | 100.0 |"
    ]


def test_the_command_runs_only_what_it_is_told(place: Place) -> None:
    values = changes(finetune__epochs=2)
    printed = succeed(*_command(place, "--only", "wrete", *values))
    assert "nergrit" not in printed
    assert {unit["training"]["steps"] for unit in place.units().values()} == {4}
    unknown = invoke(*_command(place, "--only", "wret"))
    assert (unknown.code, "Did you mean 'wrete'?" in unknown.err) == (2, True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"methods": {"w5": {"weights.bits": 5}}}, ["weights.bits is 5", "supports 8"]),
        ({"methods": {"odd": {"smothing.alpha": 1}}}, ["unknown key smothing"]),
        ({"methods": {"float": {}}}, ["study.yaml: methods.float is always there"]),
        ({"methods": {"a/b": {}}}, ["study.yaml: methods.a/b", "pattern"]),
        ({"method": {}}, ["study.yaml: method: Unexpected keyword argument"]),
        ({"recipes": []}, ["study.yaml: recipes: Tuple should have at least 1 item"]),
        ({"recipes": ["nothing.yaml"]}, ["nothing.yaml: no such recipe"]),
        ({"seeds": [0, -1]}, ["finetune.seed is -1"]),
        ({"changes": {"finetune.epohcs": 1}}, ["finetune.epohcs", "Did you mean `epochs`"]),
        ({"recipes": ["smsa.yaml", "indonlu/smsa.yaml"]}, ["both have the name smsa"]),
        ({"recipes": ["recurrent/lstm.yaml"]}, ["recurrent/lstm.yaml is a recurrent baseline"]),
    ],
)
def test_mistakes_are_found_before_any_training(
    values: dict[str, object], words: list[str], place: Place
) -> None:
    place.write(**values)
    outcome = invoke(*_command(place))
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err
    assert not place.results.exists()
    assert not place.runs.exists()


def test_a_list_is_no_study(place: Place) -> None:
    place.file.write_text("- name: a\n")
    with pytest.raises(RecipeError, match=r"study\.yaml: "):
        place.load()


def test_changes_of_the_caller_come_last_but_for_a_method_s(place: Place) -> None:
    study = load_study(place.file, {"finetune.epochs": 9, "smoothing.alpha": 0.25})
    recipe: Recipe = study.recipe("nergrit.yaml", 4, {})
    assert (recipe.finetune.epochs, recipe.finetune.seed, recipe.name) == (9, 4, "nergrit")
    assert recipe.smoothing == SmoothQuant(0.25)
    method = study.method(recipe, "half")
    assert (method.smoothing, method.finetune) == (SmoothQuant(0.5), recipe.finetune)


def test_a_method_with_the_slot_is_trained_beside_the_float_model_trained_on(
    place: Place,
) -> None:
    trained = {"qat.epochs": 1, "qat.batch_size": 8, "qat.distillation.relation_heads": 2}
    place.write(
        recipes=["nergrit.yaml"],
        seeds=[3],
        changes={**VALUES, "model": str(place.model)},
        methods={"w8a8": {}, "w8a8-qat": trained},
    )
    place.run()
    (unit,) = place.units().values()
    assert list(unit["scores"]) == ["float", "w8a8", "w8a8-qat", "float, trained on"]
    assert unit["methods"]["w8a8-qat"] == trained
    study = place.load()
    recipe = study.method(study.recipe("nergrit.yaml", 3, {}), "w8a8-qat")
    assert recipe.qat is not None
    assert recipe.qat.seed == 3
    for name in ("w8a8-qat", "float, trained on"):
        assert {"change", "agreement", "chunk_f1"} <= unit["scores"][name].keys()
    sizes = [unit["scores"][name]["bytes"] for name in ("w8a8", "w8a8-qat")]
    assert abs(sizes[0] - sizes[1]) < 100  # both are packed
    assert files_in(place.runs) == []
