"""What has to be decided together: all that reads one tensor or holds one weight, or one table.

Query, key and value share one quantized input, and the calls of an ALBERT layer share their
weights: a number of bits for one of them is a number of bits for all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any, Literal

from torch import Tensor, nn

from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.modules import QuantEmbedding, QuantLinear
from quantkit.placement import Plan

__all__ = ["Component", "Sizes", "Unit", "sizes_of", "units_of"]

Component = Literal[
    "embedding",
    "projection",
    "query, key, value",
    "attention output",
    "intermediate",
    "output",
    "head",
]

_OF_A_LAYER: tuple[Component, ...] = (
    "query, key, value",
    "attention output",
    "intermediate",
    "output",
)


@dataclass(frozen=True)
class Unit:
    """Modules that get the same number of bits.

    Attributes:
        modules: their names; the first one is the unit's name.
        patterns: what a recipe's `skip` or `eight_bits` has to say to mean the unit and nothing
            else: one pattern where there is one, otherwise the names of the first call.
        component: which part of the model it is.
        layer: the first encoder layer that it is in, from 0; None outside the layers.
    """

    modules: tuple[str, ...]
    patterns: tuple[str, ...]
    component: Component
    layer: int | None

    @property
    def name(self) -> str:
        """The first module's name."""
        return self.modules[0]

    @property
    def label(self) -> str:
        """A short form for people: the one pattern, or the first name and how many follow."""
        first, more = self.patterns[0], len(self.patterns) - 1
        return first if not more else f"{first} +{more}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Unit":
        """The inverse of `to_json`."""
        return cls(
            tuple(values["modules"]),
            tuple(values["patterns"]),
            values["component"],
            values["layer"],
        )


@dataclass(frozen=True)
class Sizes:
    """Bytes of a unit's weights and scales in a packed checkpoint; biases are the same in all."""

    now: int
    at_8_bits: int
    as_float: int


def units_of(encoder: EncoderPlan, plan: Plan) -> tuple[Unit, ...]:
    """The units that `plan` quantizes: the tables, then the rest in the order of computation."""
    known = [*encoder.embedding.tables, *(n for each in encoder.inputs() for n in each.linears)]
    found: list[tuple[tuple[str, ...], tuple[str, ...], Component, int | None]] = [
        ((table,), (table,), "embedding", None) for table in encoder.embedding.tables
    ]
    for calls in encoder.calls():
        modules = tuple(name for shared in calls for name in shared.linears)
        found.append((modules, calls[0].linears, *_place(calls[0], encoder)))
    return tuple(
        Unit(modules, _patterns(modules, first, known), component, layer)
        for modules, first, component, layer in found
        if plan.quantized(modules[0])
    )


def _place(shared: SharedInput, encoder: EncoderPlan) -> tuple[Component, int | None]:
    if shared == encoder.embedding.projection:
        return "projection", None
    for number, layer in enumerate(encoder.layers):
        if shared in layer.inputs:
            return _OF_A_LAYER[layer.inputs.index(shared)], number
    return "head", None


def _patterns(
    modules: tuple[str, ...], first: tuple[str, ...], known: Sequence[str]
) -> tuple[str, ...]:
    """One pattern that matches `modules` and nothing else of `known`; else the `first` names."""
    if len(modules) == 1:
        return modules
    start = _common_start(modules)
    end = _common_start([name[len(start) :][::-1] for name in modules])[::-1]
    pattern = f"{start}*{end}"
    matched = {name for name in known if fnmatchcase(name, pattern)}
    return (pattern,) if matched == set(modules) else first


def _common_start(names: Sequence[str]) -> str:
    """What all names begin with: `layer.1.` of `layer.1.key` and `layer.1.value`."""
    both = min(names), max(names)  # the two that differ earliest
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False))
    return "".join(a for a, _ in same)


def sizes_of(unit: Unit, model: nn.Module, quantized: nn.Module) -> Sizes:
    """Bytes of a unit as it is in `quantized`, with 8 bits, and as it is in the float `model`.

    A Linear of 384 x 1536 takes 384 * (1536 + 4) bytes at 8 bits, the 4 for its row's scale.
    """
    modules = [quantized.get_submodule(name) for name in unit.modules]
    stored, at_8_bits = 0, 0
    seen: set[int] = set()
    for module in modules:
        if not isinstance(module, QuantLinear | QuantEmbedding):
            raise TypeError(f"{unit.name} is a {type(module).__name__}: it is not quantized")
        if module.codes.data_ptr() not in seen:  # calls of one weight share it
            seen.add(module.codes.data_ptr())
            stored += sum(part.nbytes for part in _parts(module))
            rows, columns = module.integers.shape
            at_8_bits += rows * (columns + 4)
    weights = {id(weight): weight for weight in _weights(model, unit.modules)}
    return Sizes(stored, at_8_bits, sum(4 * weight.numel() for weight in weights.values()))


def _parts(module: QuantLinear | QuantEmbedding) -> Iterable[Tensor]:
    parts = [module.codes, module.scale, module.multipliers]
    if isinstance(module, QuantEmbedding):
        parts += [module.frequent_rows, module.frequent_codes]
    return (part for part in parts if part is not None)


def _weights(model: nn.Module, names: Iterable[str]) -> Iterable[Tensor]:
    for name in names:
        weight: Any = model.get_submodule(name).weight
        yield weight
