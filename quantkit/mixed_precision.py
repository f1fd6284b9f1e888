"""The smallest model within a budget: most of it at few bits, what is fragile at more.

Units are ranked by divergence per byte that their promotion costs and promoted in that order,
as few as will do; the number is found by bisection, and then each is tried without. Where 8
bits everywhere are not enough, units become floats first, the rest having 8 bits; then the
others get as few bits as the budget still allows. Candidates are put together from modules of
models that are quantized once for each number of bits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import nn
from transformers import PreTrainedModel

from quantkit.budget import Budget, fitted_factor, resolution_of
from quantkit.closeness import FloatAnswers, divergence_power
from quantkit.metrics import MAIN
from quantkit.placement import swap
from quantkit.ptq import Progress, Quantized
from quantkit.recipe import Recipe
from quantkit.sensitivity import Sensitivity, UnitSensitivity, apart, swappable
from quantkit.units import Unit

__all__ = ["Mixed", "Sources", "cheapest", "eight_bit", "search"]

Names = frozenset[str]  # of units
NONE: Names = frozenset()


@dataclass(frozen=True)
class Sources:
    """What candidates are made of; what is not needed is not made.

    Attributes:
        low: the model, quantized by `sensitivity.apart(recipe)` with `fold=False`.
        at_low: its units' sensitivity.
        high: makes the same by `eight_bit(recipe)`, with `fold=False`.
        at_high: makes the units' sensitivity of that.
    """

    low: Quantized
    at_low: Sensitivity
    high: Callable[[], Quantized]
    at_high: Callable[[], Sensitivity]


@dataclass(frozen=True)
class Mixed:
    """A model within the budget, and how it was found.

    Attributes:
        units: how many there are.
        low: names of those that have 4 bits in the recipe's own model.
        eight: units promoted to 8 bits, the most sensitive first.
        floats: units left in float, likewise.
        budget: the rule.
        measured: the drop or divergence that the rule judged.
        sizes: bytes of the quantizable weights: with the recipe's bits, as found, with 8 bits.
        tried: candidates that were measured.
    """

    units: int
    low: Names
    eight: tuple[Unit, ...]
    floats: tuple[Unit, ...]
    budget: Budget
    measured: float
    sizes: tuple[int, int, int]
    tried: int

    def notes(self, answers: FloatAnswers) -> tuple[str, ...]:
        """What the model is made of and which rule decided, `answers` being what it went by."""
        main = MAIN[answers.head.kind]
        return (
            self._summary(),
            self.budget.explained(self.measured, main, answers.rows, answers.text_rows),
        )

    def _summary(self) -> str:
        if len(self.floats) == self.units:
            return f"No part can be quantized within the budget; {self.tried} mixtures tried."
        four = len(self.low.difference(unit.name for unit in (*self.eight, *self.floats)))
        eight = self.units - four - len(self.floats)
        before, now, after = (size / 1e6 for size in self.sizes)
        return (
            f"Of {self.units} units {four} have 4 bits, {eight} have 8 ({len(self.eight)} of them "
            f"promoted) and {len(self.floats)} stay in float: {now:.2f} MB of weights, where the "
            f"recipe's own bits take {before:.2f} and 8 bits {after:.2f}; {self.tried} mixtures "
            f"tried."
        )

    def recipe(self, recipe: Recipe) -> Recipe:
        """`recipe` with the lines that make this model."""
        skip, eight = _patterns(self.floats), _patterns(self.eight)
        if eight and self.low <= {unit.name for unit in (*self.eight, *self.floats)}:
            eight = ("*",)  # all that is left: `skip` comes first
        return replace(recipe, skip=(*recipe.skip, *skip), eight_bits=(*recipe.eight_bits, *eight))


def eight_bit(recipe: Recipe) -> Recipe:
    """The recipe with 8 bits wherever it has fewer, as its `eight_bits` makes them."""
    return replace(apart(recipe), eight_bits=("*",))


def search(
    model: PreTrainedModel,
    answers: FloatAnswers,
    sources: Sources,
    max_drop: float,
    *,
    progress: Progress | None = None,
) -> Mixed:
    """The smallest model found whose expected drop of the main score is at most `max_drop` points.

    The float model is always within the budget, so there is always one.

    Args:
        model: float; left as it is.
        answers: of `model`, on the validation rows and texts that decide.
        sources: the quantized models.
        max_drop: points, above 0.
        progress: told what is done, how many are done, and of how many at most.
    """
    sources = replace(sources, high=cache(sources.high))
    budget = _budget(answers, sources, max_drop)
    trial = _Trial(model, answers, sources, budget, progress or (lambda *_: None))
    to_eight = _ranked(
        [unit for unit in sources.at_low.units if unit.bits < 8], lambda unit: unit.saved_against_8
    )
    floats, eight = NONE, NONE
    if not trial.accepts(NONE, NONE):
        low = frozenset(to_eight)
        if not trial.accepts(low, NONE):
            at_high = sources.at_high()
            order = _ranked(at_high.units, _cost_of_float)
            floats = cheapest(order, *trial.judges(lambda f: (low - f, f), at_high))
        order = [name for name in to_eight if name not in floats]
        eight = cheapest(order, *trial.judges(lambda e: (e, floats), sources.at_low))
    return _result(sources.at_low, trial, eight, floats)


def cheapest(
    order: Sequence[str],
    accepts: Callable[[Names], bool],
    hopeless: Callable[[Names, str], bool] = lambda _chosen, _name: False,
) -> Names:
    """The units to promote: the shortest accepted beginning of `order`, without what can be spared.

    The beginning is found by bisection. Then each of its units, the least useful first, is left
    out if the rest is accepted. Where more promotions never do harm, no unit of the result can be
    left out; where they do, the result is accepted all the same, and perhaps not the shortest.

    Args:
        order: the most useful first; all of them together are accepted.
        accepts: whether a model with these units promoted is within the budget.
        hopeless: whether it need not be asked about an accepted choice without one of its units.
    """
    fewest, enough = 0, len(order)
    while fewest < enough:
        middle = (fewest + enough) // 2
        if accepts(frozenset(order[:middle])):
            enough = middle
        else:
            fewest = middle + 1
    chosen = frozenset(order[:enough])
    for name in reversed(order[:enough]):
        if not hopeless(chosen, name) and accepts(chosen - {name}):
            chosen -= {name}
    return chosen


class _Trial:
    """Measures candidates, each once."""

    def __init__(
        self,
        model: PreTrainedModel,
        answers: FloatAnswers,
        sources: Sources,
        budget: Budget,
        say: Progress,
    ) -> None:
        self._shadow = swappable(model)
        self._answers = answers
        self._sources = sources
        self.budget = budget
        self._say = say
        self._units = [each.unit for each in sources.at_low.units]
        names = [name for unit in self._units for name in unit.modules]
        self._float = {name: self._shadow.get_submodule(name) for name in names}
        self._measured: dict[tuple[Names, Names], float] = {}

    @property
    def tried(self) -> int:
        """Candidates measured so far."""
        return len(self._measured)

    def accepts(self, eight: Names, floats: Names) -> bool:
        """Whether these units with 8 bits and in float, and the rest as it is, will do."""
        return self.budget.accepts(self.measured(eight, floats))

    def judges(
        self, mixture: Callable[[Names], tuple[Names, Names]], alone: Sensitivity
    ) -> tuple[Callable[[Names], bool], Callable[[Names, str], bool]]:
        """What `cheapest` asks, of the mixture that some promotions mean.

        Args:
            mixture: of promoted units, those with 8 bits and those in float.
            alone: what each unit loses if it is not promoted.
        """
        loses = {each.unit.name: each.closeness.divergence for each in alone.units}

        def hopeless(chosen: Names, name: str) -> bool:
            # Divergences nearly add up (27 units of a BERT on NERGrit: 2.3e-3 in sum, 2.2e-3
            # together), so one of twice what is left will not fit in.
            left = self.budget.limit - self.measured(*mixture(chosen))
            return not self.budget.by_score and loses[name] > 2 * left

        return (lambda chosen: self.accepts(*mixture(chosen))), hopeless

    def measured(self, eight: Names, floats: Names) -> float:
        """The drop or divergence of a candidate."""
        key = eight, floats
        if key not in self._measured:
            swap(self._shadow, self._modules(eight, floats))
            self._measured[key] = self.budget.measured(self._answers, self._shadow)
            # Bisection in both directions, and a trial without each unit: hardly ever all of it.
            most = len(self._units) + 2 * len(self._units).bit_length()
            self._say("trying mixtures", self.tried, max(most, self.tried))
        return self._measured[key]

    def _modules(self, eight: Names, floats: Names) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for unit in self._units:
            source = self._sources.low
            if unit.name in floats:
                modules |= {name: self._float[name] for name in unit.modules}
                continue
            if unit.name in eight:
                source = self._sources.high()
            modules |= {name: source.model.get_submodule(name) for name in unit.modules}
        return modules


def _budget(answers: FloatAnswers, sources: Sources, max_drop: float) -> Budget:
    """By score where the validation rows tell so small a drop from chance; else by divergence."""
    resolution = resolution_of(answers.change(sources.low.model), answers.rows)
    power = divergence_power(answers.head)
    if max_drop > resolution:
        return Budget(max_drop, resolution, power=power)
    wholes = [sources.low]
    if any(unit.bits < 8 for unit in sources.at_low.units):
        wholes.append(sources.high())
    models = [unit.closeness for unit in sources.at_low.units]
    models += [answers.closeness(whole.model) for whole in wholes]
    return Budget(
        max_drop, resolution, fitted_factor(models, power, answers.rows), power, len(models)
    )


def _ranked(units: Iterable[UnitSensitivity], cost: Callable[[UnitSensitivity], int]) -> list[str]:
    """Names by falling divergence per byte of `cost`; first those that cost nothing."""

    def use(unit: UnitSensitivity) -> float:
        # A small table whose frequent rows have 8 bits already can be larger than one of 8 bits.
        return unit.closeness.divergence / cost(unit) if cost(unit) > 0 else math.inf

    return [unit.unit.name for unit in sorted(units, key=use, reverse=True)]


def _cost_of_float(unit: UnitSensitivity) -> int:
    return unit.sizes.as_float - unit.sizes.at_8_bits


def _result(at_low: Sensitivity, trial: _Trial, eight: Names, floats: Names) -> Mixed:
    units = at_low.units  # worst first
    sizes = (
        sum(unit.sizes.now for unit in units),
        sum(_size(unit, eight, floats) for unit in units),
        sum(unit.sizes.at_8_bits for unit in units),
    )
    return Mixed(
        len(units),
        frozenset(unit.unit.name for unit in units if unit.bits < 8),
        tuple(unit.unit for unit in units if unit.unit.name in eight),
        tuple(unit.unit for unit in units if unit.unit.name in floats),
        trial.budget,
        trial.measured(eight, floats),
        sizes,
        trial.tried,
    )


def _size(unit: UnitSensitivity, eight: Names, floats: Names) -> int:
    if unit.unit.name in floats:
        return unit.sizes.as_float
    return unit.sizes.at_8_bits if unit.unit.name in eight else unit.sizes.now


def _patterns(units: Iterable[Unit]) -> tuple[str, ...]:
    return tuple(pattern for unit in units for pattern in unit.patterns)
