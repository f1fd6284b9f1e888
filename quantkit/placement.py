"""Which tensor gets how many bits, and why; and putting quantized modules into a model."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.errors import RecipeError
from quantkit.recipe import Recipe

__all__ = [
    "TYPES",
    "Placement",
    "Plan",
    "check_groups",
    "copy_without",
    "decide",
    "quantized_calls",
    "quantized_inputs",
    "swap",
]

TYPES = "a few KB, and every token reads the same row"  # why type tables stay in float
CLASSIFIER = "classifier"  # in `skip`: the last Linear, whatever its family calls it


@dataclass(frozen=True)
class Placement:
    """The decision on one module; `bits` None leaves it in float."""

    module: str
    kind: Literal["linear", "embedding"]
    bits: int | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """The decisions on all modules that could be quantized."""

    placements: tuple[Placement, ...]

    def bits(self, module: str) -> int | None:
        """How many bits `module` is to have; None leaves it in float."""
        return next((p.bits for p in self.placements if p.module == module), None)

    def quantized(self, module: str) -> bool:
        """Whether `module` is to hold integers."""
        return self.bits(module) is not None

    def to_json(self) -> list[dict[str, Any]]:
        """Plain lists and mappings."""
        return [asdict(placement) for placement in self.placements]

    @classmethod
    def from_json(cls, values: list[dict[str, Any]]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(tuple(Placement(**value) for value in values))


def decide(encoder: EncoderPlan, recipe: Recipe) -> Plan:
    """Apply the recipe's `skip` and `eight_bits` patterns: deny first, then 8 bits, then the rest.

    A pattern is matched against whole module names, `*` standing for anything. The word
    `classifier` always means the last Linear, which RoBERTa calls `classifier.out_proj`, and
    nothing in a model without one. Linears that read one tensor stay together: skipping one
    keeps all of them in float, because they share one quantized input and one merged product.
    So do those that hold the same weights. Position tables never have fewer than 8 bits: they are
    small, and every token reads them. Type tables stay in float, unless `eight_bits` names them by
    more than a mere `*`: of the few rows every token reads the same one, so its error is no noise
    that averages out, and 8 bits would save 5 KB of BERT-base.

    Raises:
        RecipeError: a pattern that matches no module.
    """
    _check_patterns(encoder, recipe)
    placements = [
        Placement(name, "embedding", *_verdict(name, {name: ""}, encoder, recipe))
        for name in encoder.embedding.tables
    ]
    bound = {shared: calls for calls in encoder.calls() for shared in calls}
    for shared in encoder.inputs():
        together = dict.fromkeys(shared.linears, "which reads the same tensor")
        for call in bound[shared]:
            together |= {
                name: "which holds the same weights" for name in call.linears if call != shared
            }
        placements += [
            Placement(name, "linear", *_verdict(name, together, encoder, recipe))
            for name in shared.linears
        ]
    return Plan(tuple(placements))


def _check_patterns(encoder: EncoderPlan, recipe: Recipe) -> None:
    linears = [name for shared in encoder.inputs() for name in shared.linears]
    modules = (*linears, *encoder.embedding.tables)
    for slot in ("skip", "eight_bits"):
        for pattern in getattr(recipe, slot):
            if pattern != CLASSIFIER and not any(fnmatchcase(name, pattern) for name in modules):
                raise RecipeError(
                    f"{slot} pattern {pattern!r} matches no module. Patterns are matched against "
                    f"whole names such as {linears[0]!r}; `*` stands for anything."
                )


def _verdict(
    name: str, together: Mapping[str, str], encoder: EncoderPlan, recipe: Recipe
) -> tuple[int | None, str]:
    """Bits and reason for `name`; `together` is what stays with it, and why."""
    for slot, bits in (("skip", None), ("eight_bits", 8)):
        for other, tie in together.items():
            for pattern in getattr(recipe, slot):
                if bits == 8 and pattern == "*" and name == encoder.embedding.types:
                    continue  # what has fewer bits than 8; a type table has more
                if _matches(other, pattern, encoder):
                    why = "" if other == name else f" through {other}, {tie}"
                    return bits, f"{slot}: {pattern}{why}"
    if name not in encoder.embedding.tables:
        return recipe.weights.bits, "recipe"
    if name == encoder.embedding.types:
        return None, TYPES
    if name != encoder.embedding.words and recipe.embeddings.bits < 8:
        return 8, "small, and read by every token"
    return recipe.embeddings.bits, "recipe"


def _matches(name: str, pattern: str, encoder: EncoderPlan) -> bool:
    classifier = encoder.head.classifier
    if pattern == CLASSIFIER and classifier is not None:
        return name in classifier.linears
    return fnmatchcase(name, pattern)


def check_groups(model: nn.Module, plan: Plan, recipe: Recipe) -> None:
    """Refuse a group that does not divide the width of a 4-bit matrix.

    Raises:
        RecipeError: naming sizes that do.
    """
    for placed in plan.placements:
        linear = placed.kind == "linear"
        slot = recipe.weights if linear else recipe.embeddings
        if placed.bits != 4 or slot.per != "group":
            continue
        width = model.get_parameter(f"{placed.module}.weight").shape[1]
        if width % slot.group:
            name, whole = ("weights", "channel") if linear else ("embeddings", "row")
            fits = [str(size) for size in range(8, 129, 2) if width % size == 0]
            raise RecipeError(
                f"{name}.group is {slot.group}, and {placed.module} has {width} columns, which "
                f"groups of {slot.group} do not divide. Sizes that fit: "
                f"{', '.join(fits) or 'none'}; or write `per: {whole}`."
            )


def quantized_inputs(encoder: EncoderPlan, plan: Plan) -> list[SharedInput]:
    """The shared inputs whose Linears are to be quantized, in the order of computation."""
    return [shared for shared in encoder.inputs() if plan.quantized(shared.linears[0])]


def quantized_calls(encoder: EncoderPlan, plan: Plan) -> list[tuple[SharedInput, ...]]:
    """`quantized_inputs`, those whose Linears hold the same weights together."""
    return [calls for calls in encoder.calls() if plan.quantized(calls[0].linears[0])]


def swap(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module at its dotted name."""
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def copy_without(model: PreTrainedModel, replaced: Iterable[nn.Module]) -> PreTrainedModel:
    """A deep copy that shares the tensors of modules about to be replaced: no memory twice."""
    tensors = [t for module in replaced for t in (*module.parameters(), *module.buffers())]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
