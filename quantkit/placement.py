"""Which tensor gets how many bits, and why; and putting quantized modules into a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.errors import RecipeError
from quantkit.recipe import Recipe

__all__ = ["Placement", "Plan", "decide", "quantized_inputs", "swap"]


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

    A pattern is matched against whole module names, `*` standing for anything. Linears
    that read one tensor stay together: skipping one keeps all of them in float, because
    they share one quantized input and one merged product.

    Raises:
        RecipeError: a pattern that matches no module.
    """
    linears = [name for shared in encoder.inputs() for name in shared.linears]
    for pattern in recipe.skip:
        if not any(fnmatchcase(name, pattern) for name in (*linears, *encoder.embeddings)):
            raise RecipeError(
                f"skip pattern {pattern!r} matches no module. Patterns are matched against "
                f"whole names such as {linears[0]!r}; `*` stands for anything."
            )
    placements = [
        Placement(name, "embedding", *_verdict(name, (name,), recipe, recipe.embeddings.bits))
        for name in encoder.embeddings
    ]
    for shared in encoder.inputs():
        placements += [
            Placement(name, "linear", *_verdict(name, shared.linears, recipe, recipe.weights.bits))
            for name in shared.linears
        ]
    return Plan(tuple(placements))


def _verdict(
    name: str, together: tuple[str, ...], recipe: Recipe, bits: int
) -> tuple[int | None, str]:
    for other in together:
        for pattern in recipe.skip:
            if fnmatchcase(other, pattern):
                why = "" if other == name else f" through {other}, which reads the same tensor"
                return None, f"skip: {pattern}{why}"
    return bits, "recipe"


def quantized_inputs(encoder: EncoderPlan, plan: Plan) -> list[SharedInput]:
    """The shared inputs whose Linears are to be quantized, in the order of computation."""
    return [shared for shared in encoder.inputs() if plan.quantized(shared.linears[0])]


def swap(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module at its dotted name."""
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
