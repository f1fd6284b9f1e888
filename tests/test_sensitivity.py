"""What each unit loses when it alone is quantized, against the same done by hand."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from quantkit.closeness import Closeness, FloatAnswers, divergence, sqnr_db
from quantkit.encoder import describe
from quantkit.errors import QuantkitError
from quantkit.files import write_json
from quantkit.heads import Head
from quantkit.partial import PartialResults
from quantkit.placement import decide, swap
from quantkit.ptq import quantize
from quantkit.recipe import Recipe
from quantkit.sensitivity import Sensitivity, analyse, apart
from quantkit.units import sizes_of, units_of
from tests.conftest import ROWS, batch_of
from tests.judging import CALIBRATION, FRAGILE, make_fragile, recipe_of_bits, rows_for
from tests.models import answers_of, small_model

SEQUENCE = "ForSequenceClassification"


def _analysed(model: PreTrainedModel, recipe: Recipe, **options: Any) -> Sensitivity:  # noqa: ANN401
    rows, texts = rows_for(model, 40, seed=3), rows_for(model, 40, seed=4)
    places = dict(texts=rows, kl_texts=texts, reachable_rows=ROWS)
    return analyse(model, recipe, CALIBRATION, **places, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    model = small_model("Bert")
    make_fragile(model)
    return model


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_of_bits(4, smoothing={"name": "none"})


@pytest.fixture(scope="module")
def found(bert: PreTrainedModel, recipe: Recipe) -> Sensitivity:
    return _analysed(bert, recipe)


def test_divergences_by_hand() -> None:
    two = Head("classification", ("a", "b"))
    p, q = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.25, 0.75], [0.5, 0.5]])
    one = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert divergence(two, p, q) == pytest.approx(one / 2)  # the mean of two rows
    assert divergence(two, p, p + 7.0) == pytest.approx(0.0, abs=1e-12)  # softmax ignores shifts
    aspects = Head("aspects", ("a", "b"), ("x", "y"))
    assert divergence(aspects, p.reshape(1, 4), q.reshape(1, 4)) == pytest.approx(one / 2)
    words = Head("words", ("a", "b"))
    assert divergence(words, [p[:1], p[1:]], [q[:1], q[1:]]) == pytest.approx(one / 2)
    # A logit of ln(1/3) is the probability 1/4.
    labels = Head("multilabel", ("a", "b"))
    assert divergence(labels, np.zeros((1, 2)), np.log([[1 / 3, 1.0]])) == pytest.approx(one / 2)
    number = Head("regression")
    assert divergence(number, np.array([[1.0], [2.0]]), np.array([[1.5], [2.0]])) == 0.125
    vectors = Head("features")
    x, y = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [6.0, 8.0]])
    assert divergence(vectors, x, y) == pytest.approx(0.5)


def test_sqnr_by_hand() -> None:
    assert sqnr_db(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])) == pytest.approx(20.0)
    assert sqnr_db([np.ones((1, 2)), np.ones((2, 2))], [np.ones((1, 2)), np.ones((2, 2))]) is None


@pytest.mark.parametrize(
    ("family", "patterns"),
    [
        ("Bert", ["bert.encoder.layer.1.attention.self.*", "bert.encoder.layer.1.output.dense"]),
        # The pattern that would say it also means the output's Linear, `out_lin`.
        ("DistilBert", [f"distilbert.transformer.layer.1.attention.{n}_lin" for n in "qkv"]),
        ("Albert", ["albert.encoder.albert_layer_groups.*.albert_layers.0.ffn"]),
        ("Electra", ["embeddings_project", "classifier.dense"]),
    ],
)
def test_patterns_mean_their_unit_and_nothing_else(family: str, patterns: list[str]) -> None:
    encoder = describe(small_model(family))
    plan = decide(encoder, recipe_of_bits(4))
    units = units_of(encoder, plan)
    said = {pattern for unit in units for pattern in unit.patterns}
    assert all(any(p.endswith(pattern) for p in said) for pattern in patterns)
    assert {name for unit in units for name in unit.modules} == {
        p.module for p in plan.placements if p.bits is not None
    }
    for unit in units:
        changed = decide(encoder, replace(recipe_of_bits(4), eight_bits=unit.patterns))
        different = {
            new.module
            for old, new in zip(plan.placements, changed.placements, strict=True)
            if old.bits != new.bits
        }
        assert different == (set(unit.modules) if plan.bits(unit.name) == 4 else set())


def test_the_fragile_layer_ranks_first(found: Sensitivity) -> None:
    first, second = found.units[:2]
    assert first.unit.modules == FRAGILE
    assert first.closeness.divergence > 2 * second.closeness.divergence
    order = [unit.closeness.divergence for unit in found.units]
    assert order == sorted(order, reverse=True)


def test_every_unit_is_what_swapping_by_hand_gives(
    bert: PreTrainedModel, recipe: Recipe, found: Sensitivity
) -> None:
    """Also to the bit: replayed layers change nothing."""
    rows, texts = rows_for(bert, 40, seed=3), rows_for(bert, 40, seed=4)
    answers = FloatAnswers(bert, rows, texts, pad_token_id=0)
    whole = quantize(bert, CALIBRATION, recipe=recipe, reachable_rows=ROWS, fold=False)
    assert len(found.units) == 2 + 2 * 4 + 1  # two tables: types stay in float
    for each in found.units:
        mixed = copy.deepcopy(bert)
        swap(mixed, {name: whole.model.get_submodule(name) for name in each.unit.modules})
        assert answers.closeness(mixed) == each.closeness
        assert each.sizes == sizes_of(each.unit, bert, whole.model)
    assert answers.closeness(whole.model) == found.whole
    assert answers.closeness(bert) == Closeness(None, 1.0, 0.0, 0.0)
    assert answers.score == found.float_score


def test_the_float_model_is_left_as_it_was(bert: PreTrainedModel, found: Sensitivity) -> None:
    kinds = {type(module).__name__ for module in bert.modules()}
    assert not any(kind.startswith(("Quant", "_Recorded")) for kind in kinds)
    assert found.kind == "classification"
    assert (found.validation_rows, found.training_texts) == (40, 40)


def test_bytes_by_hand(found: Sensitivity) -> None:
    sizes = {each.unit.name: each for each in found.units}
    inner = sizes["bert.encoder.layer.1.intermediate.dense"]  # 96 x 48
    assert (inner.sizes.as_float, inner.sizes.at_8_bits) == (96 * 48 * 4, 96 * (48 + 4))
    assert inner.sizes.now == 96 * (24 + 4)
    assert inner.saved_against_8 == 96 * 24
    words = sizes["bert.embeddings.word_embeddings"]
    # 8 rows keep 8 bits beside their 4-bit ones, each with an int64 row number.
    assert words.sizes.now == ROWS * (24 + 4) + 8 * (48 + 8)
    assert words.sizes.as_float == (ROWS + 50) * 48 * 4  # also rows that no token reaches
    positions = sizes["bert.embeddings.position_embeddings"]
    assert (positions.bits, positions.saved_against_8) == (8, 0)


@pytest.mark.parametrize(("family", "calls"), [("Albert", 2), ("DistilBert", 1)])
def test_calls_of_one_weight_are_one_unit(family: str, calls: int) -> None:
    model = small_model(family)
    result = _analysed(model, recipe_of_bits(4))
    parts = {each.unit.component: each for each in result.units}
    assert len(parts["intermediate"].unit.modules) == calls
    assert parts["intermediate"].sizes.as_float == 96 * 48 * 4  # the shared weight counts once
    assert all(each.closeness.divergence > 0 for each in result.units)


@pytest.mark.parametrize(
    ("head", "settings", "main"),
    [
        ("ForTokenClassification", {"id2label": {0: "O", 1: "B-X", 2: "I-X"}}, "chunk_f1"),
        ("Model", {}, "cosine"),
        (SEQUENCE, {"problem_type": "multi_label_classification"}, "macro_f1"),
        (
            SEQUENCE,
            {"problem_type": "regression", "num_labels": 1, "id2label": {0: "v"}},
            "pearson",
        ),
    ],
)
def test_every_kind_of_answer(head: str, settings: dict[str, Any], main: str) -> None:
    result = _analysed(small_model("Bert", head, layers=1, **settings), recipe_of_bits(4))
    worst = result.units[0].closeness
    assert 0.0 < worst.agreement < 1.0
    assert result.whole.divergence > 0.0
    assert result.main == main


def test_without_folding_every_input_is_divided_where_it_is_read(bert: PreTrainedModel) -> None:
    plain = recipe_of_bits(8)
    folded = quantize(bert, CALIBRATION, recipe=plain)
    single = quantize(bert, CALIBRATION, recipe=plain, fold=False)
    assert any(decision.folded for decision in folded.decisions)
    assert not any(decision.folded for decision in single.decisions)
    for number in range(2):
        name = f"bert.encoder.layer.{number}.attention.output.dense"
        linear: Any = single.model.get_submodule(name)
        assert linear.input.multiplier is not None
    batch = batch_of(16, 10, seed=9)
    before, after = (answers_of(each.model, batch) for each in (folded, single))
    assert float((before - after).abs().max()) < 0.05 * float(before.std())


class _Killed(Exception):  # noqa: N818 - no error
    pass


def _kill_after(units: int) -> Any:  # noqa: ANN401
    def report(what: str, done: int, total: int) -> None:
        if what == "measuring units" and done == units:
            raise _Killed

    return report


def test_a_killed_analysis_goes_on_where_it_was(
    bert: PreTrainedModel,
    recipe: Recipe,
    found: Sensitivity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "partial.json"
    with pytest.raises(_Killed):
        _analysed(bert, recipe, finished=PartialResults(path), progress=_kill_after(5))
    measured = []
    original = FloatAnswers.closeness

    def counted(self: FloatAnswers, model: torch.nn.Module) -> Closeness:
        measured.append(model)
        return original(self, model)

    monkeypatch.setattr(FloatAnswers, "closeness", counted)
    assert _analysed(bert, recipe, finished=PartialResults(path)) == found
    assert len(measured) == len(found.units) - 5 + 1  # and the whole model
    measured.clear()
    assert _analysed(bert, recipe, finished=PartialResults(path)) == found
    assert measured == []
    assert _analysed(bert, recipe, finished=PartialResults(None, (found.mark, found.results)))
    assert measured == []
    other = replace(recipe, calibration=replace(recipe.calibration, seed=1))
    assert _analysed(bert, other, finished=PartialResults(path)).mark != found.mark
    assert len(measured) == len(found.units) + 1


def test_the_file_reads_back(found: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    write_json(path, found.to_json())
    assert Sensitivity.load(path) == found
    write_json(path, {**found.to_json(), "schema": 0})
    with pytest.raises(QuantkitError, match="schema 1"):
        Sensitivity.load(path)


def test_compensation_is_left_out() -> None:
    """A layer that makes up for others' errors would do harm alone."""
    recipe = recipe_of_bits(4, compensation={})
    assert recipe.compensation is not None
    assert apart(recipe).compensation is None
