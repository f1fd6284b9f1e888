"""Recipes: strict loading, shipped files, changes by path."""

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from quantkit.algorithms.adaround import AdaRound
from quantkit.algorithms.gptq import Gptq
from quantkit.algorithms.smoothing_search import NoSmoothing
from quantkit.algorithms.smoothquant import SmoothQuant
from quantkit.calibrators import MinMax, Percentile
from quantkit.data import task_names
from quantkit.data.columns import check_source
from quantkit.data.indonlu import TASKS
from quantkit.errors import RecipeError
from quantkit.recipe import (
    Recipe,
    builtin_recipe,
    load_recipe,
    parse_recipe,
    recipe_hash,
    shipped_recipes,
    with_bits,
    with_changes,
)
from quantkit.recurrent_slot import Recurrent
from quantkit.source import Source, Split
from quantkit.study import load_study

MINIMAL = {"name": "a", "task": "smsa", "model": "m"}
ROOT = Path(__file__).parents[1]
STUDIES = [name for name in shipped_recipes() if name.endswith("-study.yaml")]
RECIPES = [name for name in shipped_recipes() if name not in STUDIES]
POSITIONS = 512  # of every encoder that a shipped recipe names


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(asdict(recipe), "again") == recipe
    assert load_recipe(ROOT / "recipes" / name) == recipe
    assert (ROOT / "recipes" / name).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_makes_sense(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.task in task_names()
    assert (recipe.data is not None) == (recipe.task == "custom")
    assert recipe.is_recurrent == (recipe.recurrent is not None)
    limit = recipe.max_length or POSITIONS
    assert limit <= POSITIONS
    # One with more tokens would be left out of the report without a word.
    assert max(recipe.bench.lengths) <= limit
    assert sorted(set(recipe.bench.lengths)) == list(recipe.bench.lengths)
    assert recipe.skip == ("classifier",)
    check_source(recipe.data or Source())


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_loads(name: str) -> None:
    study = load_study(name, {})
    for source in study.recipes:
        assert source in RECIPES
        assert study.recipe(source, 7, {}).finetune.seed == 7


def test_recipes_of_indonlu_are_its_twelve_tasks() -> None:
    names = [name for name in RECIPES if name.startswith("indonlu/")]
    assert names == sorted(f"indonlu/{task}.yaml" for task in TASKS)
    assert names == sorted(load_study("indonlu-study.yaml", {}).recipes)
    for name in names:
        recipe = load_recipe(name)
        assert f"indonlu/{recipe.name}.yaml" == f"indonlu/{recipe.task}.yaml" == name


def test_shipped_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("builtin.yaml") == builtin_recipe()
    for name in ("smsa.yaml", "indonlu/smsa.yaml", "recipes/indonlu/smsa.yaml"):
        assert load_recipe(name).task == "smsa"
    assert load_recipe("recipes/smsa.yaml") == load_recipe("smsa.yaml")  # where it once was


def test_bare_names_mean_one_recipe_each() -> None:
    bare = [Path(name).name for name in shipped_recipes()]
    assert len(set(bare)) == len(bare)
    assert all(load_recipe(Path(name).name) == load_recipe(name) for name in RECIPES)


def test_a_file_that_is_there_comes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smsa.yaml").write_text(yaml.safe_dump({**MINIMAL, "name": "mine"}))
    assert load_recipe("smsa.yaml").name == "mine"
    assert load_recipe("indonlu/smsa.yaml").name == "smsa"


@pytest.mark.parametrize(
    "name", ["mine/smsa.yaml", "/mine/smsa.yaml", "", ".", "*.yaml", "recipes"]
)
def test_a_misspelt_path_is_not_another_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(name)


def test_a_wheel_holds_all_recipes() -> None:
    """Hatchling takes the whole folder; an installed quantkit looks for it inside itself."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert build["build"]["targets"]["wheel"]["force-include"] == {"recipes": "quantkit/recipes"}
    there = {path for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    assert there == {ROOT / "recipes" / name for name in shipped_recipes()}


def test_defaults_are_the_ones_that_measured_best() -> None:
    recipe = parse_recipe(MINIMAL, "here")
    assert recipe.smoothing == SmoothQuant(alpha="auto")
    assert recipe.activations.calibrator == MinMax()
    assert recipe.skip == ("classifier",)
    assert recipe.finetune.lr == 2e-5


def test_members_of_a_union_are_chosen_by_name() -> None:
    recipe = parse_recipe(
        {
            **MINIMAL,
            "smoothing": {"name": "none"},
            "activations": {"calibrator": {"name": "percentile", "percentile": 99.5}},
        },
        "here",
    )
    assert recipe.smoothing == NoSmoothing()
    assert recipe.activations.calibrator == Percentile(99.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finetune": {"epoch": 3}}, ["finetune.epoch", "Did you mean `epochs`"]),
        ({"smothing": {"name": "none"}}, ["smothing", "Did you mean `smoothing`"]),
        ({"weights": {"bits": 5}}, ["weights.bits is 5", "supports 8"]),
        ({"smoothing": {"name": "smooth"}}, ["smoothing.name is 'smooth'", "'smoothquant'"]),
        ({"smoothing": {"name": "smoothquant", "alfa": 1}}, ["alfa", "Did you mean `alpha`"]),
        (
            {"activations": {"calibrator": {"name": "percentile", "percentil": 99}}},
            ["percentil", "Did you mean `percentile`"],
        ),
        ({"finetune": {"lr": -1.0}}, ["finetune.lr is -1.0", "greater than 0"]),
        ({"finetune": {"epochs": "many"}}, ["finetune.epochs is 'many'"]),
        ({"name": "../escape"}, ["name is '../escape'"]),
        ({"data": {"txt": "a"}}, ["unknown key data.txt", "Did you mean `text`"]),
        ({"data": {"split": {"tets": 0.1}}}, ["data.split.tets", "Did you mean `test`"]),
        ({"data": {"cleaning": {"lowr": True}}}, ["data.cleaning.lowr", "Did you mean `lower`"]),
        ({"data": {"kind": "word"}}, ["data.kind is 'word'", "'words'"]),
        ({"recurrent": {"cells": "rnn"}}, ["recurrent.cells", "Did you mean `cell`"]),
        ({"recurrent": {"units": []}}, ["recurrent.units is []", "at least 1 item"]),
        ({"student": "half"}, ["student is 'half'", "'every-second-layer'"]),
        ({"max_length": 3}, ["max_length is 3", "greater than or equal to 4"]),
        ({"qat": {"epochs": 0}}, ["qat.epochs is 0", "greater than 0"]),
        ({"qat": {"epoch": 1}}, ["unknown key qat.epoch", "Did you mean `epochs`"]),
        ({"qat": {"scales": {"name": "lsqq"}}}, ["qat.scales.name is 'lsqq'", "'lsq'"]),
        ({"qat": {"scales": {"lr": 0.1, "name": "fixed"}}}, ["unknown key qat.scales.fixed.lr"]),
        ({"qat": {}, "activations": {"scope": "all"}}, ["here.yaml: `qat` ends in", "inputs`"]),
        (
            {"qat": {"scales": {"name": "ema"}}, "activations": {"bits": 16}},
            ["here.yaml: `qat.scales` is ema", "16-bit inputs stay in float", "{name: fixed}"],
        ),
        (
            {"qat": {"scales": {"name": "ema"}}, "activations": {"per": "token"}},
            ["each token has its own scale"],
        ),
        ({"qat": {}, "model": "recurrent"}, ["a recurrent baseline is not quantized"]),
        (
            {"qat": {"teacher": "none", "distillation": {"hidden": 0.5}}},
            ["the teacher is `none`", "remove one"],
        ),
        (
            {"qat": {"distillation": {"logits": 0, "hidden": 0, "attention": 0}}},
            ["nothing of the teacher is used"],
        ),
        (
            {"weights": {"bits": 8, "per": "group"}},
            ["here.yaml: weights: groups are for 4 bits", "write `per: channel`"],
        ),
        ({"distill": {"teachr": "x"}}, ["distill.teachr", "Did you mean `teacher`"]),
    ],
)
def test_problems_name_the_key_and_the_way_out(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**MINIMAL, **change}, "here.yaml")
    message = str(caught.value)
    assert message.startswith("here.yaml: ")
    for word in words:
        assert word in message


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"name": "a", "weights": {"bits": 5}, "skp": []}, "here.yaml")
    assert len(str(caught.value).splitlines()) == 4  # task, model, bits, skp


def test_a_missing_file_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such recipe.*builtin\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)


def test_a_list_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- name: a")
    with pytest.raises(RecipeError, match="mapping of slots"):
        load_recipe(path)


def test_bits_5_is_refused_and_8_taken() -> None:
    recipe = builtin_recipe()
    assert with_bits(recipe, 8) == recipe
    with pytest.raises(RecipeError, match=r"weights\.bits is 5; quantkit supports 8"):
        with_bits(recipe, 5)


def test_changes_by_dotted_path() -> None:
    changed = with_changes(builtin_recipe(), {"finetune.lr": "1e-4", "smoothing.alpha": "0.75"})
    assert changed.finetune.lr == 1e-4
    assert changed.smoothing == SmoothQuant(alpha=0.75)
    with pytest.raises(RecipeError, match=r"finetune\.epohcs"):
        with_changes(builtin_recipe(), {"finetune.epohcs": "5"})
    with pytest.raises(RecipeError, match="name is a value"):
        with_changes(builtin_recipe(), {"name.x": "5"})
    with pytest.raises(RecipeError, match=r"skip: '\[classifier' is not YAML"):
        with_changes(builtin_recipe(), {"skip": "[classifier"})


def test_another_algorithm_begins_with_its_own_defaults() -> None:
    """GPTQ's damping means nothing to AdaRound, and must not stand in its way."""
    recipe = builtin_recipe()
    assert isinstance(recipe.rounding, Gptq)
    assert with_changes(recipe, {"rounding.name": "adaround"}).rounding == AdaRound()
    calibrator = {"activations.calibrator.name": "percentile"}
    assert with_changes(recipe, calibrator).activations.calibrator == Percentile()
    with pytest.raises(RecipeError, match=r"rounding\.adaround\.damping"):
        with_changes(recipe, {"rounding.name": "adaround", "rounding.damping": 0.1})


@pytest.mark.parametrize("first", ["rounding.name", "rounding.steps"])
def test_options_that_are_changed_with_the_algorithm_stay_in_either_order(first: str) -> None:
    changes: dict[str, object] = {"rounding.name": "adaround", "rounding.steps": 7}
    ordered = {first: changes[first], **changes}
    assert with_changes(builtin_recipe(), ordered).rounding == AdaRound(steps=7)


def test_the_same_algorithm_keeps_its_options() -> None:
    recipe = with_changes(builtin_recipe(), {"rounding.damping": 0.5})
    assert with_changes(recipe, {"rounding.name": "gptq"}) == recipe


def test_changes_reach_slots_that_are_not_in_use() -> None:
    recipe = with_changes(builtin_recipe(), {"data.split.test": "0.2", "recurrent.units": [8]})
    assert recipe.data == Source(split=Split(test=0.2))
    assert recipe.recurrent == Recurrent(units=(8,))
    assert with_changes(recipe, {"data": None}).data is None


def test_the_hash_is_of_the_values_not_of_the_spelling(tmp_path: Path) -> None:
    path = tmp_path / "same.yaml"
    path.write_text(yaml.safe_dump({**asdict(builtin_recipe()), "skip": ["classifier"]}))
    assert recipe_hash(load_recipe(path)) == recipe_hash(builtin_recipe())
    assert recipe_hash(with_changes(builtin_recipe(), {"finetune.seed": 1})) != recipe_hash(
        builtin_recipe()
    )


def test_recipes_are_frozen() -> None:
    recipe: Recipe = builtin_recipe()
    with pytest.raises(AttributeError):
        recipe.name = "other"  # type: ignore[misc]
