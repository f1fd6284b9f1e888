"""The recipe: named slots, each a frozen dataclass that is also the configuration of its part.

Slots cannot stand in the wrong order, and a new algorithm is one file plus its name in one
union. Loading is strict: all problems of a file are listed at once, each with the path of
its key and, for a misspelt one, the nearest right spelling.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from quantkit.algorithms.compensation import Compensation
from quantkit.algorithms.gptq import Gptq
from quantkit.algorithms.outlier_scaling import OutlierScaling
from quantkit.algorithms.smoothing_search import NoSmoothing
from quantkit.algorithms.smoothquant import SmoothQuant
from quantkit.config import STRICT
from quantkit.errors import RecipeError
from quantkit.recipe_problems import explain
from quantkit.recurrent_slot import Recurrent
from quantkit.slots import (
    Activations,
    Bench,
    Calibration,
    Embeddings,
    Export,
    Rounding,
    Weights,
)
from quantkit.source import Source
from quantkit.training_slots import Distill, Distillation, Finetune, Qat, Training

__all__ = [
    "Activations",
    "Bench",
    "Calibration",
    "Distill",
    "Distillation",
    "Embeddings",
    "Export",
    "Finetune",
    "Qat",
    "Recipe",
    "Training",
    "Weights",
    "builtin_recipe",
    "load_recipe",
    "parse_recipe",
    "read_yaml",
    "recipe_hash",
    "shipped_recipes",
    "with_bits",
    "with_changes",
    "with_target",
]

Named = Field(discriminator="name")


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """One whole line from text to a measured ONNX file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: str
    model: str
    data: Source | None = None  # columns of a table of one's own, for task `custom`
    student: Literal["every-second-layer"] | None = None  # start from a part of the model
    recurrent: Recurrent | None = None  # the network, with `model: recurrent`
    max_length: Annotated[int, Field(ge=4)] | None = None  # tokens; null: the model's limit
    finetune: Finetune = Field(default_factory=Finetune)
    calibration: Calibration = Field(default_factory=Calibration)
    weights: Weights = Field(default_factory=Weights)
    activations: Activations = Field(default_factory=Activations)
    embeddings: Embeddings = Field(default_factory=Embeddings)
    smoothing: Annotated[SmoothQuant | OutlierScaling | NoSmoothing, Named] = Field(
        default_factory=SmoothQuant
    )
    rounding: Annotated[Rounding, Named] = Field(default_factory=Gptq)
    compensation: Compensation | None = None  # present: layers make up for those before them
    bias_correction: bool = False  # mean outputs as in float, on the calibration texts
    skip: tuple[str, ...] = ("classifier",)  # patterns over module names that stay in float
    eight_bits: tuple[str, ...] = ()  # patterns that have 8 bits where the rest has 4
    qat: Qat | None = None  # how quantization-aware training goes; null: the defaults
    distill: Distill | None = None  # how a smaller student learns; null: the defaults
    export: Export = Field(default_factory=Export)
    bench: Bench = Field(default_factory=Bench)

    @model_validator(mode="after")
    def _check_qat(self) -> "Recipe":
        if self.qat is not None and (problem := _contradiction(self, self.qat)):
            raise ValueError(problem)
        return self

    @property
    def is_recurrent(self) -> bool:
        """Whether the model is a recurrent baseline, which is measured and not quantized."""
        return self.model == "recurrent"


def _contradiction(recipe: Recipe, qat: Qat) -> str:
    """What in the other slots cannot be trained as `qat` says; empty if nothing."""
    inputs = recipe.activations
    if recipe.is_recurrent:
        return (
            "`qat` trains quantized encoders, and a recurrent baseline is not quantized: remove it"
        )
    if inputs.scope == "all":
        return (
            "`qat` ends in a file of integers, and `activations.scope: all` has none: write "
            "`scope: inputs`, or remove `qat`"
        )
    if qat.scales.name == "ema" and (inputs.bits == 16 or inputs.per == "token"):
        kind = (
            "16-bit inputs stay in float" if inputs.bits == 16 else "each token has its own scale"
        )
        return (
            f"`qat.scales` is ema, which trains the ranges of inputs, and these have none "
            f"({kind}): write `scales: {{name: lsq}}` or `{{name: fixed}}`, or give activations 8 "
            f"or 4 bits and `per: tensor`"
        )
    return ""


_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def parse_recipe(values: object, source: str) -> Recipe:
    """Build a recipe from plain mappings; `source` names the file in messages.

    Raises:
        RecipeError: one message that lists every problem.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of slots, e.g. `task: smsa`.")
    try:
        recipe = _ADAPTER.validate_python(values)
    except ValidationError as problem:
        lines = [explain(dict(entry), Recipe) for entry in problem.errors()]
        raise RecipeError("\n".join(f"{source}: {line}" for line in lines)) from None
    _check_target(recipe, source)
    return recipe


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or a shipped one by its file name.

    Raises:
        RecipeError: no such file, not YAML, or not a recipe.
    """
    values, source = read_yaml(path)
    return parse_recipe(values, source)


def read_yaml(path: str | Path) -> tuple[object, str]:
    """What a YAML file holds, and its path; a shipped one is found by its name.

    Raises:
        RecipeError: no such file, or not YAML.
    """
    path = Path(path)
    if not path.is_file():
        shipped = _shipped(path)
        if shipped is None:
            known = ", ".join(shipped_recipes())
            raise RecipeError(f"{path}: no such recipe. Shipped recipes: {known}.")
        path = shipped
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")), str(path)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path} is not YAML: {problem}") from None


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with quantkit, as `load_recipe` takes them."""
    folder = _shipped_folder()
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))


def builtin_recipe() -> Recipe:
    """The recipe of the built-in data and model."""
    return load_recipe(_shipped_folder() / "builtin.yaml")


def with_bits(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with weights and word embeddings at `bits` bits.

    A recipe that has these bits already stays as it is. Otherwise it gets what measured best:
    GPTQ, and for 4 bits two-level groups and outlier scaling, for 8 bits one scale per channel
    and SmoothQuant.

    Raises:
        RecipeError: a number of bits that is not supported.
    """
    if recipe.weights.bits == bits:
        return recipe
    per = ("group", "group", "outlier-scaling") if bits == 4 else ("channel", "row", "smoothquant")
    values: dict[str, object] = {
        "weights.bits": bits,
        "embeddings.bits": bits,
        "weights.per": per[0],
        "embeddings.per": per[1],
        "smoothing": {"name": per[2]},
        "rounding": {"name": "gptq"},
    }
    return with_changes(recipe, values)


def with_target(recipe: Recipe, target: str) -> Recipe:
    """The recipe with another target, and with the inputs' grid that the target takes.

    Raises:
        RecipeError: a target that is not supported.
    """
    values = dict(_grid_of(recipe, target))
    return with_changes(recipe, {"export.target": target, **values})


def _grid_of(recipe: Recipe, target: str) -> Mapping[str, object]:
    """What `target` asks of the inputs of the recipe's products."""
    on_cuda = target in {"cuda", "cuda-unpadded"}
    if on_cuda and recipe.weights.bits == 4:
        return {"activations.bits": 16}
    if (on_cuda or target == "portable") and recipe.activations.bits < 16:
        return {"activations.per": "tensor", "activations.symmetric": True}
    return {}


def _check_target(recipe: Recipe, source: str) -> None:
    """Refuse inputs that the target has no operators for."""
    target = recipe.export.target
    for path, wanted in _grid_of(recipe, target).items():
        found = getattr(recipe.activations, path.rpartition(".")[2])
        if found != wanted:
            text = json.dumps(wanted).strip('"')
            raise RecipeError(
                f"{source}: export.target is {target!r}, which takes {path}: {text}; found "
                f"{json.dumps(found)}. Set it, or write `quantkit ptq --target {target}`, which "
                f"does."
            )


def with_changes(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with values changed at dotted paths, checked like a file.

    A slot's `name` is its algorithm: another one begins with its own defaults, but for options
    that are changed along with it.

    Raises:
        RecipeError: an unknown path, or a value that does not fit; text is read as YAML.
    """
    values: dict[str, Any] = asdict(recipe)
    for path, value in changes.items():
        *parents, last = path.split(".")
        slot = values
        for parent in parents:
            below = slot.setdefault(parent, {})
            if below is None:  # a slot that is not in use
                below = slot[parent] = {}
            if not isinstance(below, dict):
                raise RecipeError(f"{path}: {parent} is a value, not a section.")
            slot = below
        found = _parsed(value, path) if isinstance(value, str) else value
        if last == "name" and parents and found != slot.get("name"):
            _forget(slot, ".".join(parents), changes)
        slot[last] = found
    return parse_recipe(values, "recipe")


def _forget(slot: dict[str, Any], path: str, changes: Mapping[str, object]) -> None:
    """Remove the options that the slot at `path` had before `changes`."""
    for key in [key for key in slot if f"{path}.{key}" not in changes]:
        del slot[key]


def _parsed(text: str, path: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"{path}: {text!r} is not YAML. Check brackets and quotes.") from None


def recipe_hash(recipe: Recipe) -> str:
    """First 16 hex digits of the SHA-256 of the resolved recipe as canonical JSON."""
    canonical = json.dumps(asdict(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _shipped(path: Path) -> Path | None:
    """The shipped file meant by `indonlu/emot.yaml`, `recipes/indonlu/emot.yaml` or `emot.yaml`."""
    folder = _shipped_folder()
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    if path.is_absolute() or not path.name:
        return None
    if (folder / inside).is_file():
        return folder / inside
    # Only a bare name: a misspelt path must not become another recipe.
    found = folder.rglob("*.yaml") if len(inside.parts) == 1 else ()
    return next((file for file in sorted(found) if file.name == path.name), None)


def _shipped_folder() -> Path:
    """The recipes in an installed wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"
