"""Which tensor gets how many bits, and why; and putting quantized modules into a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.errors import RecipeError
from quantkit.recipe import Recipe

__all__ = ["Placement", "Plan", "decide", "quantized_calls", "quantized_inputs", "swap"]

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

    def quantized(self, module: str) -> bool:
        """Whether `module` is to hold integers."""
        return any(p.module == module and p.bits is not None for p in self.placements)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain lists and mappings."""
        return [asdict(placement) for placement in self.placements]

    @classmethod
    def from_json(cls, values: list[dict[str, Any]]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(tuple(Placement(**value) for value in values))


def decide(encoder: EncoderPlan, recipe: Recipe) -> Plan:
    """Apply the recipe's `skip` patterns: deny first, everything else is quantized.

    A pattern is matched against whole module names, `*` standing for anything. The word
    `classifier` always means the last Linear, which RoBERTa calls `classifier.out_proj`, and
    nothing in a model without one. Linears that read one tensor stay together: skipping one
    keeps all of them in float, because they share one quantized input and one merged product.
    So do those that hold the same weights.

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
    for pattern in recipe.skip:
        if pattern != CLASSIFIER and not any(fnmatchcase(name, pattern) for name in modules):
            raise RecipeError(
                f"skip pattern {pattern!r} matches no module. Patterns are matched against "
                f"whole names such as {linears[0]!r}; `*` stands for anything."
            )


def _verdict(
    name: str, together: Mapping[str, str], encoder: EncoderPlan, recipe: Recipe
) -> tuple[int | None, str]:
    """Bits and reason for `name`; `together` is what stays with it, and why."""
    for other, tie in together.items():
        for pattern in recipe.skip:
            if _matches(other, pattern, encoder):
                why = "" if other == name else f" through {other}, {tie}"
                return None, f"skip: {pattern}{why}"
    table = name in encoder.embedding.tables
    return recipe.embeddings.bits if table else recipe.weights.bits, "recipe"


def _matches(name: str, pattern: str, encoder: EncoderPlan) -> bool:
    classifier = encoder.head.classifier
    if pattern == CLASSIFIER and classifier is not None:
        return name in classifier.linears
    return fnmatchcase(name, pattern)


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
