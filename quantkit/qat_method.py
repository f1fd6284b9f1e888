"""How quantization-aware training differs from plain training: its `Method`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.batching import Encoded
from quantkit.checkpoint import padding_of
from quantkit.closeness import divergence
from quantkit.errors import QuantkitError, RecipeError
from quantkit.heads import Head
from quantkit.method import Divergence, Method, Objective, TaskLoss, before_any_update
from quantkit.prediction import Outputs, predict
from quantkit.ptq import Quantized, output_factors
from quantkit.ptq.resume import fingerprint
from quantkit.qat import Lsq, diagnose, parameter_groups, refuse_dead_inputs, set_progress
from quantkit.recipe import Qat
from quantkit.teacher import DistillationLoss, load_teacher
from quantkit.training_slots import NOBODY, SELF

__all__ = ["qat_method"]


def qat_method(
    trained: PreTrainedModel,
    model: PreTrainedModel,
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    head: Head,
    slot: Qat,
    validation: Encoded | None,
) -> Method:
    """The method that trains a model of `qat.prepare`.

    Args:
        trained: the model of fake-quantized modules.
        model: the float model, which is the teacher unless the slot names another.
        quantized: what `trained` begins as.
        tokenizer: of both.
        head: what they answer.
        slot: the recipe's.
        validation: rows whose answers are held against the teacher's after each epoch, if it is the
            teacher alone that the model learns from: a few hundred labels tell epochs apart less
            well than how near the answers' shares are (`closeness.divergence`). None: by the score.

    Raises:
        CheckpointError: the teacher cannot be loaded.
        RecipeError: it cannot teach this student.
    """
    objective: Objective = TaskLoss(head)
    identity = [fingerprint("", quantized.model, ())]
    from_teacher: Callable[[Outputs], float] | None = None
    if slot.teacher != NOBODY:
        teacher = model if slot.teacher == SELF else load_teacher(slot.teacher, head, tokenizer)
        factors, weights = output_factors(quantized), slot.distillation.with_task(0.0)
        objective = DistillationLoss(trained, teacher, head, weights, factors)
        identity.append(fingerprint("", teacher, ()))
        if validation is not None and not weights.task:
            answers = predict(teacher, validation, pad_token_id=padding_of(tokenizer))
            from_teacher = partial(divergence, head, answers)
    groups: list[dict[str, Any]] = parameter_groups(
        trained,
        lr=slot.lr,
        weight_decay=slot.weight_decay,
        scale_lr=slot.scales.lr if isinstance(slot.scales, Lsq) else slot.lr,
    )
    explain = partial(_explain, trained, slot)
    return Method(objective, groups, explain, _before_step(trained), identity, from_teacher)


def _before_step(trained: nn.Module) -> Callable[[int, int], None]:
    """Tell the modules how far training is, and look once for layers that no data reaches."""
    first: list[int] = []

    def before_step(step: int, steps: int) -> None:
        if first and step == first[0] + 1:
            refuse_dead_inputs(trained)
        if not first:
            first.append(step)
        set_progress(trained, step, steps)

    return before_step


def _explain(trained: nn.Module, slot: Qat, found: Divergence) -> QuantkitError:
    if found.steps == 0:
        return before_any_update(found)
    learned = isinstance(slot.scales, Lsq)
    rates = f"qat.lr {slot.lr}"
    rates += f" and qat.scales.lr {slot.scales.lr}" if isinstance(slot.scales, Lsq) else ""
    return RecipeError(
        f"The {found.what} is {found.value} after {found.steps} steps with {rates}: training "
        f"diverged. {diagnose(trained)} Lower qat.lr{' or qat.scales.lr' if learned else ''}, or "
        f"raise qat.warmup, and start over with --overwrite."
    )
