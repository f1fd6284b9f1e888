"""Asking a teacher: hooks on every family, parts that add up, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.batching import IGNORED, collate
from quantkit.checkpoint import head_settings, save_float
from quantkit.distill import hidden_distances, labels_per_row, logits_distance, relation_distances
from quantkit.encoder import describe, unroll
from quantkit.errors import RecipeError
from quantkit.heads import Head
from quantkit.losses import loss_sum
from quantkit.method import Method, plain
from quantkit.recipe import Distillation
from quantkit.student import every_second_layer
from quantkit.teacher import DistillationLoss, load_teacher, watching
from tests.conftest import batch_of
from tests.models import FAMILIES, small_model
from tests.training import (
    ASPECTS,
    CLASSES,
    SETTINGS,
    TRAINABLE,
    WORDS,
    Killed,
    assert_same_bits,
    kill_at,
    make_model,
    make_rows,
    run,
    without_seconds,
)

ALL = Distillation(relation_heads=2, relation_layers="all")
SMALL = Head("classification", ("positive", "neutral", "negative"))


def padded(seed: int = 1) -> dict[str, Tensor]:
    batch = batch_of(4, 12, seed=seed)
    batch["attention_mask"][0, 7:] = 0
    return batch


def value(loss: DistillationLoss, model: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    known = {name: batch[name] for name in describe(model).arguments}
    with torch.no_grad():
        return float(loss(model, known, torch.zeros(len(batch["input_ids"]), dtype=torch.int64)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_its_own_teacher_is_at_no_distance(family: str) -> None:
    """In every family: the hooks find the modules."""
    model = unroll(small_model(family))
    loss = DistillationLoss(model, model, SMALL, replace(ALL, task=0.0))
    assert value(loss, model, padded()) == 0.0
    other = unroll(small_model(family, seed=1))
    assert value(DistillationLoss(model, other, SMALL, replace(ALL, task=0.0)), model, padded()) > 0
    assert not any(module._forward_hooks for module in (*model.modules(), *other.modules()))


@pytest.mark.parametrize("layers", ["last", "all"])
def test_the_parts_are_weighed_and_are_of_the_layers_that_they_are_meant_to_be(
    layers: Any,  # noqa: ANN401
) -> None:
    """A student of three layers against its teacher of six: layers 1, 3 and 5."""
    teacher, batch = small_model("Bert", layers=6), padded()
    student = every_second_layer(teacher).train(False)
    slot = Distillation(0.3, 0.5, 3.0, 0.7, True, 0.9, 4, layers)
    found = value(DistillationLoss(student, teacher, SMALL, slot), student, batch)
    labels, mask = torch.zeros(4, dtype=torch.int64), batch["attention_mask"]
    ours, theirs = (describe(each).layers for each in (student, teacher))
    with (
        torch.no_grad(),
        watching(student, dict(student.named_modules())) as mine,
        watching(teacher, dict(teacher.named_modules())) as right,
    ):
        a, b = student(**batch).logits, teacher(**batch).logits
    expected = 0.3 * loss_sum(SMALL, a, labels) + 0.5 * logits_distance(SMALL, a, b, labels, 3.0)
    pairs = list(zip(ours, (theirs[1], theirs[3], theirs[5]), strict=True))
    for one, other in pairs:
        names = one.output_norm, other.output_norm
        distances = hidden_distances(mine[names[0]], right[names[1]], mask, normalize=True)
        expected += 0.7 / 3 * distances.sum()
    for one, other in pairs if layers == "all" else pairs[2:]:
        linears = one.query_key_value.linears, other.query_key_value.linears
        for p, q in zip(*linears, strict=True):
            count = 9 if layers == "all" else 3
            expected += 0.9 / count * relation_distances(mine[p], right[q], mask, 4).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("head", TRAINABLE, ids=lambda head: head.kind)
def test_parts_of_a_batch_add_up(head: Head) -> None:
    """So that neither accumulation nor processes change what is learnt."""
    student, teacher = make_model(head), make_model(head)
    torch.manual_seed(3)
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    loss, rows = DistillationLoss(student, teacher, head, ALL), make_rows(12, 0, head)

    def total(indices: list[int]) -> float:
        batch = collate(rows, indices, 0)
        labels = batch.pop("labels")
        with torch.no_grad():
            return float(loss(student, batch, labels))

    parts = [total(list(range(start, 12, 5))) for start in range(5)]
    assert sum(parts) == pytest.approx(total(list(range(12))), rel=1e-4)


def distilling(model: PreTrainedModel, head: Head) -> Method:
    teacher = make_model(head)
    torch.manual_seed(5)
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    objective = DistillationLoss(model, teacher, head, replace(ALL, task=0.0))
    return replace(plain(model, head, SETTINGS), objective=objective, identity="teacher")


@pytest.mark.parametrize("head", [CLASSES, WORDS, ASPECTS], ids=lambda head: head.kind)
def test_training_against_a_teacher_brings_the_student_nearer(head: Head) -> None:
    model = make_model(head)
    method = distilling(model, head)
    rows: dict[str, Any] = {"train": make_rows(30, 0, head), "validation": make_rows(20, 1, head)}
    settings = replace(SETTINGS, epochs=6, dropout=0.0, lr=3e-3)
    result = run(model, settings=settings, method=method, score=lambda *_: 0.0, **rows)
    losses = [entry["train_loss"] for entry in result.history]
    assert losses[-1] < 0.7 * losses[0]


def test_computing_activations_twice_or_resuming_changes_no_bit(tmp_path: Path) -> None:
    whole, twice, resumed = make_model(), make_model(), make_model()
    expected = run(whole, method=distilling(whole, CLASSES))
    again = replace(SETTINGS, checkpointing=True)
    run(twice, settings=again, method=distilling(twice, CLASSES))
    assert_same_bits(whole, twice)
    killed = make_model()
    with pytest.raises(Killed):
        run(killed, tmp_path / "state", method=distilling(killed, CLASSES), on_step=kill_at(7))
    plainly = make_model()
    with pytest.raises(RecipeError, match="Resume it with what it began with"):
        run(plainly, tmp_path / "state", resume=True)
    result = run(resumed, tmp_path / "state", resume=True, method=distilling(resumed, CLASSES))
    assert_same_bits(whole, resumed)
    assert without_seconds(result) == without_seconds(expected)


def saved(folder: Path, tokenizer: PreTrainedTokenizerBase, head: Head) -> Path:
    model = small_model("Bert")
    for name, setting in head_settings(head).items():
        setattr(model.config, name, setting)
    save_float(model, tokenizer, folder)
    return folder


def test_a_teacher_from_a_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = saved(tmp_path / "teacher", tokenizer, SMALL)
    teacher = load_teacher(folder, SMALL, tokenizer)
    assert_same_bits(teacher, small_model("Bert"))


def test_a_teacher_of_another_task_or_vocabulary_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = saved(tmp_path / "teacher", tokenizer, SMALL)
    with pytest.raises(RecipeError, match=r"answers classification \(positive, .*answers words"):
        load_teacher(folder, WORDS, tokenizer)
    turned = Head("classification", ("negative", "neutral", "positive"))
    with pytest.raises(RecipeError, match="its labels in the same order"):
        load_teacher(folder, turned, tokenizer)
    tokenizer.save_pretrained(tmp_path / "other")
    other = type(tokenizer).from_pretrained(tmp_path / "other")
    other.add_tokens(["kata"])
    with pytest.raises(RecipeError, match="1 entries differ, so the same ids mean other words"):
        load_teacher(folder, SMALL, other)


def test_sizes_that_cannot_be_compared_are_refused() -> None:
    deep, wide = small_model("Bert", layers=3), small_model("Bert", hidden_size=24)
    shallow = small_model("Bert")
    with pytest.raises(RecipeError, match="student has 3 layers and the teacher 2"):
        DistillationLoss(deep, shallow, SMALL, ALL)
    with pytest.raises(RecipeError, match="48 wide and the teacher's 24"):
        DistillationLoss(shallow, wide, SMALL, ALL)
    with pytest.raises(RecipeError, match="5 relation heads do not divide"):
        DistillationLoss(shallow, shallow, SMALL, replace(ALL, relation_heads=5))
    slot = replace(ALL, hidden=0.0)
    assert value(DistillationLoss(shallow, wide, SMALL, slot), shallow, padded()) > 0


def test_tokens_without_labels_do_not_count() -> None:
    labels = torch.tensor([[IGNORED, 0, 1], [IGNORED, IGNORED, 0]])
    assert labels_per_row(labels).tolist() == [2, 1]
