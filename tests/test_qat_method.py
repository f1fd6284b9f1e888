"""Training fake-quantized modules in quantkit's own loop: its bits, its parts, its end."""

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from quantkit.batching import collate
from quantkit.closeness import divergence
from quantkit.encoder import describe
from quantkit.errors import CheckpointError, RecipeError
from quantkit.heads import Head
from quantkit.method import Method
from quantkit.prediction import predict
from quantkit.ptq import Quantized, output_factors, quantize
from quantkit.qat import Ema, Fixed, Lsq, pack, prepare
from quantkit.qat_method import qat_method
from quantkit.recipe import Distillation, Qat, parse_recipe
from quantkit.teacher import DistillationLoss
from quantkit.train import TrainingResult
from tests.conftest import batch_of
from tests.models import FAMILIES, small_model
from tests.models import quantized as small_quantized
from tests.training import (
    CLASSES,
    SETTINGS,
    TRAIN,
    WORDS,
    Killed,
    assert_same_bits,
    byte_level_tokenizer,
    kill_at,
    largest_difference,
    make_model,
    make_rows,
    rising,
    run,
    without_seconds,
)

SLOT = Qat(
    epochs=3,
    batch_size=8,
    lr=1e-3,
    warmup=0.25,
    dropout=0.1,
    save_every=3,
    distillation=Distillation(relation_layers="all"),
)
TWO_LEVELS: dict[str, Any] = {
    "weights": {"bits": 4, "per": "group", "group": 8},
    "embeddings": {"bits": 4, "per": "group", "group": 8, "frequent": 10},
    "smoothing": {"name": "outlier-scaling"},
}


def start(head: Head = CLASSES, **slots: Any) -> tuple[PreTrainedModel, Quantized]:  # noqa: ANN401
    """A small float model and what quantization makes of it; training changes neither."""
    return _start(head, json.dumps(slots))


@cache
def _start(head: Head, slots: str) -> tuple[PreTrainedModel, Quantized]:
    model = make_model(head)
    batch = collate(make_rows(30, 0, head), list(range(30)), 0)
    del batch["labels"]
    values = {"name": "t", "task": "none", "model": "none", **TWO_LEVELS}
    values |= json.loads(slots)
    return model, quantize(model, [batch], recipe=parse_recipe(values, "test"))


def trained(
    head: Head = CLASSES,
    slot: Qat = SLOT,
    state: Path | None = None,
    slots: dict[str, Any] | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[PreTrainedModel, Quantized, TrainingResult]:
    model, quantized = start(head, **(slots or {}))
    student = prepare(model, quantized, slot.scales)
    method = qat_method(student, model, quantized, byte_level_tokenizer(), head, slot, None)
    rows: dict[str, Any] = {"train": make_rows(30, 0, head), "validation": make_rows(20, 1, head)}
    result = run(student, state, slot, method=method, **(rows | options))
    return student, quantized, result


# What a run is told, and how quantization left its model.
KINDS: dict[str, tuple[Head, Qat, dict[str, Any]]] = {
    "learned": (CLASSES, SLOT, {}),
    "words in parts": (WORDS, replace(SLOT, accumulation=3), {}),
    "activations twice": (CLASSES, replace(SLOT, checkpointing=True), {}),
    "bf16": (CLASSES, replace(SLOT, precision="bf16"), {}),
    "followed": (CLASSES, replace(SLOT, scales=Ema(decay=0.5)), {}),
    "fixed, no teacher": (
        CLASSES,
        replace(SLOT, scales=Fixed(), teacher="none", distillation=Distillation()),
        {},
    ),
    "inputs in float": (CLASSES, SLOT, {"activations": {"bits": 16}}),
    "a scale per token": (CLASSES, SLOT, {"activations": {"per": "token"}}),
    "4-bit inputs": (CLASSES, SLOT, {"activations": {"bits": 4}}),
    "8 bits": (
        CLASSES,
        SLOT,
        {"weights": {"bits": 8}, "embeddings": {"bits": 8}, "smoothing": {"name": "smoothquant"}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Killed before and behind the step (a tenth) at which multipliers are chosen again."""
    head, slot, slots = KINDS[kind]
    whole, quantized, expected = trained(head, slot, slots=slots)
    for at, step in enumerate((1, 5, 10) if kind in ("learned", "followed") else (5,)):
        with pytest.raises(Killed):
            state = tmp_path / "state"
            trained(head, slot, state, slots, resume=at > 0, on_step=kill_at(step))
    resumed, _, result = trained(head, slot, tmp_path / "state", slots, resume=True)
    assert_same_bits(whole, resumed)
    assert without_seconds(result) == without_seconds(expected)
    ends = pack(whole, quantized).model, pack(resumed, quantized).model
    assert_same_bits(*ends)
    with pytest.raises(AssertionError):
        assert_same_bits(ends[0], quantized.model)


def test_batches_in_parts_give_the_same_weights() -> None:
    plain = replace(SLOT, dropout=0.0)
    whole, _, result = trained(WORDS, plain, score=rising())
    parts, _, again = trained(WORDS, replace(plain, accumulation=3), score=rising())
    # Rounding may fall on the other side of a boundary: straight-through gradients then jump.
    assert largest_difference(whole, parts)[0] < 1e-2
    losses = [[entry["train_loss"] for entry in each.history] for each in (result, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("fold", [True, False])
def test_a_model_without_rounding_is_at_no_distance_from_its_teacher(fold: bool) -> None:
    """Also where the value projection does the smoothing of attention's output."""
    model, _ = start()
    batch = collate(TRAIN, list(range(12)), 0)
    labels = batch.pop("labels")
    smoothing = {"name": "smoothquant", "alpha": 0.5}
    recipe = parse_recipe(
        {"name": "t", "task": "none", "model": "none", "smoothing": smoothing}, "test"
    )
    quantized = quantize(model, [batch], recipe=recipe, fold=fold)
    factors = output_factors(quantized)
    assert bool(factors) == fold
    exact = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            linear: Any = exact.get_submodule(name)
            linear.weight *= factor[:, None]
            linear.bias *= factor
            reader: Any = exact.get_submodule(name.replace("self.value", "output.dense"))
            reader.weight /= factor
    only = Distillation(0.0, 0.0, 1.0, 0.0, True, 1.0, None, "all")
    with torch.no_grad():
        plain = float(DistillationLoss(exact, model, CLASSES, only)(exact, batch, labels))
        loss = DistillationLoss(exact, model, CLASSES, only, factors)
        found = float(loss(exact, batch, labels))
    assert found < 1e-4
    assert (plain > 1e-3) == fold


def test_learning_brings_a_4_bit_model_nearer_to_its_teacher() -> None:
    """One of the coarsest: 4-bit inputs, a scale per channel, nearest rounding."""
    coarse = {
        "weights": {"bits": 4},
        "embeddings": {"bits": 4},
        "activations": {"bits": 4},
        "smoothing": {"name": "none"},
    }
    slot = replace(SLOT, epochs=8, dropout=0.0, distillation=Distillation())
    _, _, result = trained(slot=slot, slots=coarse, score=rising())
    losses = [entry["train_loss"] for entry in result.history]
    assert losses[-1] < 0.92 * losses[0]


def test_a_rate_that_diverges_names_step_layer_and_way_out() -> None:
    slot = replace(SLOT, lr=1e-3, scales=Lsq(lr=1e3), warmup=0.0)
    with pytest.raises(RecipeError) as caught:
        trained(slot=slot)
    message = str(caught.value)
    assert "after" in message
    assert "qat.lr 0.001 and qat.scales.lr 1000.0: training diverged" in message
    assert "bert." in message  # the module whose range exploded
    assert "Lower qat.lr or qat.scales.lr" in message
    fixed = replace(SLOT, scales=Fixed(), lr=1e30, warmup=0.0)
    with pytest.raises(RecipeError, match=r"with qat.lr 1e\+30: training.*Lower qat.lr, or raise"):
        trained(slot=fixed)


def test_nan_before_the_first_update_is_the_checkpoints_fault() -> None:
    model, quantized = start()
    student = prepare(model, quantized, Lsq())
    method = qat_method(student, model, quantized, byte_level_tokenizer(), CLASSES, SLOT, None)
    next(student.parameters()).detach()[:] = torch.nan
    with pytest.raises(CheckpointError, match="before any update"):
        run(student, settings=SLOT, method=method)


def test_a_layer_that_no_data_reaches_is_named_after_the_first_step() -> None:
    model, quantized = start()
    student = prepare(model, quantized, Lsq())
    method = qat_method(student, model, quantized, byte_level_tokenizer(), CLASSES, SLOT, None)
    layers: Any = student.get_submodule("bert.encoder")
    layers.layer[0].forward = lambda hidden, *_, **__: hidden  # passes it on and computes nothing
    slot = replace(SLOT, teacher="none", distillation=Distillation())
    blind = qat_method(student, model, quantized, byte_level_tokenizer(), CLASSES, slot, None)
    with pytest.raises(RecipeError, match=r"layer\.0.*has not seen any data after a training step"):
        run(student, settings=slot, method=replace(method, objective=blind.objective))


def test_another_start_or_teacher_is_another_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(state=tmp_path / "state", on_step=kill_at(7))
    nobody = replace(SLOT, teacher="none", distillation=Distillation())
    others: list[dict[str, Any]] = [
        {"slots": {"activations": {"calibrator": {"name": "mse"}}}},
        {"slot": replace(SLOT, scales=Lsq(lr=2e-3))},
        {"slot": nobody},
    ]
    for other in others:
        with pytest.raises(RecipeError, match="Resume it with what it began with"):
            trained(state=tmp_path / "state", resume=True, **other)


def test_the_settings_that_plain_training_has_too() -> None:
    shared = SLOT.shared()
    assert not isinstance(shared, Qat)
    assert (shared.lr, shared.epochs, shared.dropout) == (1e-3, 3, 0.1)
    assert SETTINGS.save_every == shared.save_every


def test_labels_weigh_nothing_beside_a_teacher_unless_the_recipe_says_so() -> None:
    """And all there is without one."""
    model, quantized = start()
    student = prepare(model, quantized, Lsq())
    batch = collate(TRAIN, list(range(12)), 0)
    labels = batch.pop("labels")
    nobody = replace(SLOT, teacher="none", distillation=Distillation())
    zero, one = (replace(SLOT, distillation=Distillation(task=task)) for task in (0.0, 1.0))
    values = []
    for slot in (replace(SLOT, distillation=Distillation()), zero, one, nobody):
        method = qat_method(student, model, quantized, byte_level_tokenizer(), CLASSES, slot, None)
        with torch.no_grad():
            values.append(float(method.objective(student, batch, labels)))
    assert values[0] == values[1]
    assert values[2] == pytest.approx(values[1] + values[3], rel=1e-5)


def test_epochs_compete_by_how_near_they_are_to_the_teacher_if_labels_weigh_nothing() -> None:
    model, quantized = start()
    student = prepare(model, quantized, Lsq())
    rows, tokenizer = make_rows(20, 1), byte_level_tokenizer()

    def method(slot: Qat) -> Method:
        return qat_method(student, model, quantized, tokenizer, CLASSES, slot, rows)

    answers, changed = (predict(each, rows, pad_token_id=0) for each in (model, student))
    found = method(SLOT).divergence
    assert found is not None
    assert (found(answers), found(changed)) == (0.0, divergence(CLASSES, answers, changed))
    nobody = replace(SLOT, teacher="none", distillation=Distillation())
    assert method(nobody).divergence is None
    assert method(replace(SLOT, distillation=Distillation(task=0.5))).divergence is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_from_its_float_self(family: str) -> None:
    """Also ALBERT, whose one layer is several modules here and one in the float model."""
    model = small_model(family)
    quantized = small_quantized(model)
    student = prepare(model, quantized, Lsq())
    head = Head("classification", ("positive", "neutral", "negative"))
    method = qat_method(student, model, quantized, byte_level_tokenizer(), head, SLOT, None)
    batch = {name: batch_of(4, 12)[name] for name in describe(student).arguments}
    labels = torch.zeros(4, dtype=torch.int64)
    method.objective(student.train(), batch, labels).backward()
    without = [name for name, each in student.named_parameters() if each.grad is None]
    assert [name for name in without if "pooler" not in name] == []


def test_the_first_steps_do_not_lose_the_codes_of_gptq() -> None:
    """Its codes are not nearest to many weights; a step moves each weight by the learning rate."""
    slots = {"rounding": {"name": "gptq"}}
    slot = replace(SLOT, lr=1e-4, epochs=1, dropout=0.0, warmup=0.0, distillation=Distillation())
    student, quantized, result = trained(slot=slot, slots=slots)
    assert result.steps == 4
    before, after = quantized.model.state_dict(), pack(student, quantized).model.state_dict()
    names = [name for name in before if name.endswith("dense.codes")]
    changed = [float((before[name] != after[name]).float().mean()) for name in names]
    assert max(changed) < 0.02
