"""The search for the smallest model within a budget, on made-up costs and on small models."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from quantkit.budget import LOST_PER_CHANGE, Budget, fitted_factor, resolution_of
from quantkit.closeness import Closeness, FloatAnswers
from quantkit.metrics import Interval
from quantkit.mixed_precision import Mixed, Sources, cheapest, eight_bit, search
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe
from quantkit.sensitivity import Sensitivity, analyse
from tests.conftest import ROWS
from tests.judging import CALIBRATION, FRAGILE, make_fragile, recipe_of_bits, rows_for
from tests.models import small_model

PATTERN = "bert.encoder.layer.0.attention.self.*"


class _Costs:
    """Units whose noises add up, each with the bytes that its promotion costs."""

    def __init__(self, seed: int, *, even: bool) -> None:
        random = np.random.default_rng(seed)
        self.noise = dict(zip("abcdefg", random.uniform(0.0, 1.0, 7), strict=True))
        sizes = np.full(7, 10) if even else random.integers(1, 40, 7)
        self.bytes = dict(zip("abcdefg", sizes.tolist(), strict=True))
        self.limit = random.uniform(0.1, 0.9) * sum(self.noise.values())
        self.asked: list[frozenset[str]] = []

    @property
    def order(self) -> list[str]:
        return sorted(self.noise, key=lambda name: -self.noise[name] / self.bytes[name])

    def accepts(self, promoted: frozenset[str]) -> bool:
        self.asked.append(promoted)
        return bool(sum(n for name, n in self.noise.items() if name not in promoted) <= self.limit)

    def price(self, promoted: frozenset[str]) -> int:
        return sum(self.bytes[name] for name in promoted)

    def best(self) -> int:
        """The least bytes, of all subsets."""
        subsets = itertools.chain.from_iterable(
            itertools.combinations(self.noise, size) for size in range(8)
        )
        return min(self.price(s) for each in subsets if self.accepts(s := frozenset(each)))


@pytest.mark.parametrize("seed", range(20))
def test_with_even_sizes_nothing_smaller_is_within_the_budget(seed: int) -> None:
    costs = _Costs(seed, even=True)
    found = cheapest(costs.order, costs.accepts)
    assert costs.accepts(found)
    assert costs.price(found) == costs.best()


@pytest.mark.parametrize("seed", range(20))
def test_no_promotion_can_be_spared_and_at_most_one_is_too_many(seed: int) -> None:
    """Greedy by noise per byte is within the last unit's size of the best (Dantzig's bound)."""
    costs = _Costs(seed, even=False)
    found = cheapest(costs.order, costs.accepts)
    assert costs.accepts(found)
    assert len(costs.asked) <= 3 + len(costs.order) + 1  # bisection of 8 lengths, then each unit
    assert not any(costs.accepts(found - {name}) for name in found)
    assert costs.price(found) <= costs.best() + max(costs.bytes.values())


def test_a_hopeless_trial_is_not_made() -> None:
    costs = _Costs(0, even=False)
    found, asked = cheapest(costs.order, costs.accepts), len(costs.asked)

    def hopeless(chosen: frozenset[str], name: str) -> bool:
        return not _Costs(0, even=False).accepts(chosen - {name})

    assert cheapest(costs.order, costs.accepts, hopeless) == found
    assert len(costs.asked) - asked < asked


def test_where_more_promotions_do_harm_the_result_is_still_accepted() -> None:
    accepted = [frozenset("ab"), frozenset("abcd")]
    assert cheapest("abcd", accepted.__contains__) in accepted
    assert cheapest("abcd", lambda promoted: len(promoted) == 4) == frozenset("abcd")
    assert cheapest("abcd", lambda _: True) == frozenset()


def test_the_budget_by_hand() -> None:
    assert resolution_of(Interval(-0.004, -0.014, 0.006), 200) == pytest.approx(1.0)
    assert resolution_of(Interval(0.0, 0.0, 0.0), 200) == pytest.approx(1.5)
    models = [Closeness(None, 0.0, 0.0, 1.0), Closeness(None, 0.0, 0.0, 4.0)]
    assert fitted_factor(models, 0.5, 200) == pytest.approx(3 / 5)  # (1, 1) and (2, 1)
    assert fitted_factor([Closeness(None, 1.0, 0.0, 0.0)], 0.5, 200) == 0.0
    unseen = [Closeness(None, 1.0, 0.0, 0.04), Closeness(None, 1.0, 0.0, 0.01)]
    assert fitted_factor(unseen, 0.5, 200) == pytest.approx(0.015 / 0.2)
    by_texts = Budget(1.0, 2.0, factor=0.5)
    assert by_texts.limit == pytest.approx(0.0016)
    assert by_texts.accepts(0.00159)
    assert not by_texts.accepts(0.00161)
    assert Budget(1.0, 2.0, factor=0.5, power=1.0).limit == pytest.approx(0.02)
    assert Budget(1.0, 2.0, factor=0.0).limit == math.inf
    by_score = Budget(1.0, 0.5)
    assert by_score.accepts(1.0)
    assert by_score.accepts(-3.0)
    assert not by_score.accepts(1.01)


def test_the_rule_that_decided_is_said_with_its_numbers() -> None:
    said = Budget(1.0, 0.5).explained(0.25, "macro_f1", 100, 1000)
    assert "macro f1 of 100 validation rows decided" in said
    assert "allowed 1.00 points, found +0.25" in said
    said = Budget(0.5, 0.8, 0.5, models=9).explained(2e-5, "chunk_f1", 209, 1000)
    assert "divergence over 1000 training texts decided" in said
    assert "changed answers = 0.500 x sqrt(divergence), fitted to 9 models" in said
    assert "of which one percent costs 0.5 points" in said
    assert "allowed 4.00e-04, found 2.00e-05" in said


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    model = small_model("Bert")
    make_fragile(model)
    return model


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_of_bits(4, smoothing={"name": "none"})


@pytest.fixture(scope="module")
def answers(bert: PreTrainedModel) -> FloatAnswers:
    return FloatAnswers(
        bert, rows_for(bert, 60, seed=3), rows_for(bert, 60, seed=4), pad_token_id=0
    )


def _quantized(model: PreTrainedModel, recipe: Recipe) -> Quantized:
    return quantize(model, CALIBRATION, recipe=recipe, reachable_rows=ROWS, fold=False)


def _sources(model: PreTrainedModel, recipe: Recipe, answers: FloatAnswers) -> Sources:
    def analysed(changed: Recipe, quantized: Quantized) -> Sensitivity:
        rows = dict(texts=answers.validation, kl_texts=answers.texts, quantized=quantized)
        return analyse(model, changed, CALIBRATION, **rows)  # type: ignore[arg-type]

    low, high = _quantized(model, recipe), _quantized(model, eight_bit(recipe))
    at_high: Callable[[], Sensitivity] = lambda: analysed(eight_bit(recipe), high)  # noqa: E731
    return Sources(low, analysed(recipe, low), lambda: high, at_high)


@pytest.fixture(scope="module")
def sources(bert: PreTrainedModel, recipe: Recipe, answers: FloatAnswers) -> Sources:
    return _sources(bert, recipe, answers)


def _divergence_budget(limit: float) -> Any:  # noqa: ANN401
    """In the place of `_budget`: a divergence of at most `limit`."""
    return lambda *_: Budget(1.0, 2.0, factor=0.01 / LOST_PER_CHANGE / math.sqrt(limit))


def _same(mixed: Mixed, model: PreTrainedModel, recipe: Recipe, answers: FloatAnswers) -> None:
    """The recipe lines make the very model that was measured."""
    again = _quantized(model, mixed.recipe(recipe))
    assert mixed.budget.measured(answers, again.model) == pytest.approx(mixed.measured, abs=1e-12)


def test_the_fragile_unit_is_what_gets_8_bits(
    bert: PreTrainedModel,
    recipe: Recipe,
    answers: FloatAnswers,
    sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = sources.at_low.whole.divergence
    monkeypatch.setattr("quantkit.mixed_precision._budget", _divergence_budget(0.6 * whole))
    mixed = search(bert, answers, sources, 1.0)
    assert [unit.modules for unit in mixed.eight] == [FRAGILE]
    assert mixed.floats == ()
    assert mixed.recipe(recipe).eight_bits == (PATTERN,)
    assert mixed.recipe(recipe).skip == ("classifier",)
    assert 0 < mixed.measured <= 0.6 * whole
    assert mixed.sizes[1] - mixed.sizes[0] == 3 * 48 * 24
    assert mixed.sizes[1] < mixed.sizes[2]
    _same(mixed, bert, recipe, answers)


def test_what_8_bits_cannot_hold_becomes_float_and_the_rest_has_few_bits_again(
    bert: PreTrainedModel,
    recipe: Recipe,
    answers: FloatAnswers,
    sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 0.5 * answers.divergence(sources.high().model)
    monkeypatch.setattr("quantkit.mixed_precision._budget", _divergence_budget(limit))
    mixed = search(bert, answers, sources, 1.0)
    assert mixed.floats
    assert mixed.measured <= limit
    assert not set(mixed.floats) & set(mixed.eight)
    changed = mixed.recipe(recipe)
    assert changed.skip[0] == "classifier"
    assert set(changed.skip[1:]) == {p for unit in mixed.floats for p in unit.patterns}
    _same(mixed, bert, recipe, answers)


def test_a_budget_of_next_to_nothing_leaves_the_float_model(
    bert: PreTrainedModel,
    recipe: Recipe,
    answers: FloatAnswers,
    sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quantkit.mixed_precision._budget", _divergence_budget(1e-300))
    mixed = search(bert, answers, sources, 1.0)
    assert {unit.name for unit in mixed.floats} == {u.unit.name for u in sources.at_low.units}
    assert (mixed.eight, mixed.measured) == ((), 0.0)


def test_a_wide_budget_is_decided_by_the_score_and_needs_no_other_model(
    bert: PreTrainedModel, recipe: Recipe, answers: FloatAnswers, sources: Sources
) -> None:
    def never() -> Any:  # noqa: ANN401
        raise AssertionError("not needed")

    mixed = search(bert, answers, replace(sources, high=never, at_high=never), 90.0)
    assert mixed.budget.by_score
    assert (mixed.eight, mixed.floats, mixed.tried) == ((), (), 1)
    assert mixed.measured == pytest.approx(-100 * answers.change(sources.low.model).value)
    assert mixed.recipe(recipe) == recipe


def test_a_narrow_budget_is_decided_by_texts(
    bert: PreTrainedModel, recipe: Recipe, answers: FloatAnswers, sources: Sources
) -> None:
    mixed = search(bert, answers, sources, 2.0)
    budget = mixed.budget
    assert not budget.by_score
    assert budget.resolution == resolution_of(answers.change(sources.low.model), 60) > 2.0
    assert budget.models == len(sources.at_low.units) + 2
    units = [unit.closeness for unit in sources.at_low.units]
    wholes = [answers.closeness(each.model) for each in (sources.low, sources.high())]
    assert budget.factor == pytest.approx(fitted_factor([*units, *wholes], 0.5, 60))
    assert mixed.measured <= budget.limit
    summary, rule = mixed.notes(answers)
    assert f"({len(mixed.eight)} of them promoted) and {len(mixed.floats)} stay in float" in summary
    assert "divergence over 60 training texts decided" in rule
    _same(mixed, bert, recipe, answers)


def test_eight_bits_give_way_to_floats_alone(
    bert: PreTrainedModel, answers: FloatAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_bits(8)
    sources = _sources(bert, recipe, answers)
    limit = 0.5 * answers.divergence(sources.low.model)
    monkeypatch.setattr("quantkit.mixed_precision._budget", _divergence_budget(limit))
    mixed = search(bert, answers, sources, 1.0)
    assert mixed.floats
    assert mixed.eight == ()
    assert mixed.recipe(recipe).eight_bits == ()
    _same(mixed, bert, recipe, answers)


def test_a_smoothed_mixture_with_floats_is_packed_as_it_was_measured(
    bert: PreTrainedModel, answers: FloatAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs that are no longer watched must not change what the others are smoothed by."""
    recipe = recipe_of_bits(4, smoothing={"name": "outlier-scaling"})
    sources = _sources(bert, recipe, answers)
    limit = 0.2 * min(answers.divergence(m.model) for m in (sources.low, sources.high()))
    monkeypatch.setattr("quantkit.mixed_precision._budget", _divergence_budget(limit))
    mixed = search(bert, answers, sources, 1.0)
    assert 0 < len(mixed.floats) < mixed.units
    _same(mixed, bert, recipe, answers)
    folded = quantize(bert, CALIBRATION, recipe=mixed.recipe(recipe), reachable_rows=ROWS)
    assert answers.divergence(folded.model) == pytest.approx(mixed.measured, rel=0.1)


def test_all_promoted_is_one_pattern(recipe: Recipe, sources: Sources) -> None:
    units = tuple(each.unit for each in sources.at_low.units if each.bits < 8)
    low = frozenset(unit.name for unit in units)
    mixed = Mixed(12, low, units[1:], units[:1], Budget(1.0, 0.5), 0.0, (1, 2, 3), 4)
    changed = mixed.recipe(recipe)
    assert changed.eight_bits == ("*",)
    assert changed.skip == ("classifier", *units[0].patterns)
