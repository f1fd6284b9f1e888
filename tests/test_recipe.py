from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from quantkit.algorithms.smoothquant import NoSmoothing, SmoothQuant
from quantkit.calibrators import MinMax, Percentile
from quantkit.errors import RecipeError
from quantkit.recipe import (
    Recipe,
    builtin_recipe,
    load_recipe,
    parse_recipe,
    recipe_hash,
    with_bits,
    with_changes,
)

MINIMAL = {"name": "a", "task": "smsa", "model": "m"}
RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert parse_recipe(asdict(recipe), "again") == recipe


def test_shipped_recipes_are_found_by_name() -> None:
    assert load_recipe("builtin.yaml") == builtin_recipe()
    assert len(RECIPES) >= 2


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
