"""The teacher of a distillation: loading it, checking that it can teach, and asking it.

The layers' values are read by hooks on the modules that `encoder.describe` names, so that every
family and every kind of module (float, fake-quantized) is read in the same way.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.checkpoint import load_float
from quantkit.distill import (
    hidden_distances,
    labels_per_row,
    logits_distance,
    relation_distances,
    teacher_layers,
)
from quantkit.encoder import EncoderPlan, describe, head_of, unroll
from quantkit.errors import RecipeError
from quantkit.heads import Head
from quantkit.losses import loss_sum
from quantkit.recipe import Distillation

__all__ = ["DistillationLoss", "check_teacher", "load_teacher", "watching"]

Batch = Mapping[str, Tensor]
Seen = dict[str, Tensor]


def load_teacher(
    source: str | Path, head: Head, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model in a checkpoint folder or on the Hub, if it can teach a student.

    Args:
        source: where it is.
        head: what the student answers.
        tokenizer: the student's.

    Raises:
        CheckpointError: it cannot be loaded.
        RecipeError: it answers something else, or reads other token ids.
    """
    model, own = load_float(source)
    check_teacher(str(source), model, own, head, tokenizer)
    return model


def check_teacher(
    source: str,
    model: PreTrainedModel,
    own: PreTrainedTokenizerBase,
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a teacher that answers something else than its student or reads other ids.

    Raises:
        RecipeError: says what it answers, or by how many tokens the vocabularies differ.
    """
    taught = head_of(model)
    if taught != head:
        raise RecipeError(
            f"The teacher {source} answers {taught.described()}; the student answers "
            f"{head.described()}. Take a teacher of the same task, its labels in the same order, "
            f"or write `teacher: self`."
        )
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        apart = len(theirs.items() ^ ours.items())
        raise RecipeError(
            f"The teacher {source} has a vocabulary of {len(theirs):,} tokens and the student one "
            f"of {len(ours):,}; {apart:,} entries differ, so the same ids mean other words. Take "
            f"a teacher with the student's tokenizer (and no `embeddings.trim: corpus`), or write "
            f"`teacher: self`."
        )


class DistillationLoss:
    """The labels' loss and the distances to a teacher, an `Objective`.

    A row's distance in hidden states or relations counts for each of its labels, so that all
    parts are sums over labels.

    Args:
        student: the model that is trained; what is called may wrap it.
        teacher: not trained; it is put into eval mode and follows the batches to their device.
        head: what both answer.
        slot: how much each part weighs.
        factors: [out] by module name, where a student's outputs are the teacher's times a factor
            (see `ptq.output_factors`); default: nowhere.

    Raises:
        RecipeError: the hidden sizes differ where hidden states are compared, a number of
            relation heads that does not divide them, or more layers than the teacher's.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        head: Head,
        slot: Distillation,
        factors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._student, self._head, self._slot = student, head, slot.with_task(1.0)
        self._factors = dict(factors or {})
        self._teacher = unroll(teacher).train(False)
        ours, theirs = describe(student), describe(self._teacher)
        self._arguments = theirs.arguments
        self._relation_heads = slot.relation_heads or theirs.heads
        _check_sizes(student, teacher, slot, self._relation_heads)
        pairs = _pairs(ours, theirs)
        self._hidden = [(a.output_norm, b.output_norm) for a, b in pairs] if slot.hidden else []
        related = pairs if slot.relation_layers == "all" else pairs[-1:]
        self._related = [
            names
            for a, b in (related if slot.attention else ())
            for names in zip(a.query_key_value.linears, b.query_key_value.linears, strict=True)
        ]
        self._names = [name for name, _ in self._watched()], [name for _, name in self._watched()]

    def __call__(self, model: nn.Module, batch: Batch, labels: Tensor) -> Tensor:
        """The sum over all labels."""
        slot, mask = self._slot, batch["attention_mask"]
        with watching(self._student, self._names[0]) as ours:
            logits = model(**batch).logits
        right, theirs = self._ask(batch)
        total = (slot.task or 0.0) * loss_sum(self._head, logits, labels)
        if slot.logits:
            distance = logits_distance(self._head, logits, right, labels, slot.temperature)
            total = total + slot.logits * distance
        counts = labels_per_row(labels)
        for weight, pairs, distances in self._kinds():
            for mine, other in pairs:
                found = distances(self._plain(mine, ours[mine]), theirs[other], mask)
                total = total + weight / len(pairs) * (counts * found).sum()
        return total

    def _plain(self, name: str, output: Tensor) -> Tensor:
        """A student's output in the teacher's units."""
        factor = self._factors.get(name)
        return output if factor is None else output / factor.to(output.device)

    def _kinds(self) -> Iterator[tuple[float, list[tuple[str, str]], Callable[..., Tensor]]]:
        """What is compared by rows: its weight, the modules, and the distance of two outputs."""
        slot = self._slot

        def hidden(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
            return hidden_distances(a, b, mask, normalize=slot.normalize)

        def related(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
            return relation_distances(a, b, mask, self._relation_heads)

        yield slot.hidden, self._hidden, hidden
        yield slot.attention, self._related, related

    def _watched(self) -> list[tuple[str, str]]:
        return [*self._hidden, *self._related]

    @torch.no_grad()
    def _ask(self, batch: Batch) -> tuple[Tensor, Seen]:
        """The teacher's logits, and the outputs of its modules."""
        ids = batch["input_ids"]
        self._teacher.to(ids.device)
        known = {name: batch[name] for name in self._arguments if name in batch}
        with watching(self._teacher, self._names[1]) as seen:
            return self._teacher(**known).logits, seen


@contextmanager
def watching(model: nn.Module, names: Iterable[str]) -> Iterator[Seen]:
    """What the modules of these names give in the block's last forward pass, by name."""
    seen: Seen = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:  # noqa: ANN401
            seen[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pairs(student: EncoderPlan, teacher: EncoderPlan) -> list[tuple[Any, Any]]:
    """The student's layers with the teacher's that they are held against."""
    ours, theirs = student.layers, teacher.layers
    if len(ours) > len(theirs):
        raise RecipeError(
            f"The student has {len(ours)} layers and the teacher {len(theirs)}: layers can be held "
            f"against a teacher that has as many or more. Set `hidden` and `attention` to 0, or "
            f"take a deeper teacher."
        )
    places = teacher_layers(len(ours), len(theirs))
    return [(layer, theirs[place]) for layer, place in zip(ours, places, strict=True)]


def _check_sizes(
    student: PreTrainedModel, teacher: PreTrainedModel, slot: Distillation, heads: int
) -> None:
    ours, theirs = (int(each.config.hidden_size) for each in (student, teacher))
    if slot.hidden and ours != theirs:
        raise RecipeError(
            f"The student's layers are {ours} wide and the teacher's {theirs}: hidden states of "
            f"different widths cannot be held against each other. Set `hidden` to 0; `attention` "
            f"compares models of any widths."
        )
    if slot.attention and (ours % heads or theirs % heads):
        raise RecipeError(
            f"{heads} relation heads do not divide the widths {ours} and {theirs} of student and "
            f"teacher. Set `relation_heads` to a number that does."
        )
