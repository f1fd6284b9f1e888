"""What a training run has beside the loop: what it minimises, its knobs, who explains a divergence.

Fine-tuning, distillation and quantization-aware training differ in nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from quantkit.errors import CheckpointError, QuantkitError, RecipeError
from quantkit.heads import Head
from quantkit.losses import loss_sum
from quantkit.optimization import parameter_groups
from quantkit.prediction import Outputs
from quantkit.recipe import Training

__all__ = ["Batch", "Divergence", "Method", "Objective", "TaskLoss", "before_any_update", "plain"]

Batch = Mapping[str, Tensor]

# Model, batch without its labels, labels -> the sum of the losses of all labels, a float32
# scalar. A sum and not a mean, so that any division of a batch into parts adds up: the loop
# divides by the number of labels in the whole batch. The model is the one to call, which may
# wrap the one that is trained.
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """A value that is no number any more, behind so many steps.

    Attributes:
        what: e.g. "loss".
        value: NaN or infinite.
        steps: that were made before.
        lr: the largest learning rate of the run.
    """

    what: str
    value: float
    steps: int
    lr: float


@dataclass(frozen=True)
class Method:
    """What distinguishes one kind of training from another.

    Attributes:
        objective: what a step minimises.
        groups: the optimizer's groups of parameters, each with `lr` and `weight_decay`; the
            schedule scales every group's own rate.
        explain: the error that a divergence ends in.
        before_step: called with the number of the step, from 0, and the number of all steps;
            what it changes must follow from these two numbers and from the model's own state,
            or else a resumed run would not end with the same bits.
        identity: what a resumed run has to share with its beginning beside its settings, its
            rows and the shapes of its model: plain values.
        divergence: of the outputs of all validation rows: how far they are from where they should
            be. Epochs compete by it, and the least wins; None: by the task's score.
    """

    objective: Objective
    groups: Sequence[Mapping[str, Any]]
    explain: Callable[[Divergence], QuantkitError]
    before_step: Callable[[int, int], None] = lambda _step, _steps: None
    identity: object = None
    divergence: Callable[[Outputs], float] | None = None

    def standing(self, score: float, outputs: Outputs) -> dict[str, float]:
        """What the validation rows say of a model, as the history of a training has it.

        Args:
            score: the task's.
            outputs: of all rows.

        Returns:
            `validation_score`, and `validation_divergence` if there is a divergence.
        """
        if self.divergence is None:
            return {"validation_score": score}
        return {"validation_score": score, "validation_divergence": self.divergence(outputs)}

    def rank(self, standing: Mapping[str, float]) -> float:
        """What models compete by, of such a standing; higher is better."""
        if self.divergence is None:
            return standing["validation_score"]
        return -standing["validation_divergence"]


@dataclass(frozen=True)
class TaskLoss:
    """The task's own loss, an `Objective`; see `losses.loss_sum`."""

    head: Head

    def __call__(self, model: nn.Module, batch: Batch, labels: Tensor) -> Tensor:
        """The sum of the losses of all labels."""
        return loss_sum(self.head, model(**batch).logits, labels)


def plain(model: nn.Module, head: Head, settings: Training, slot: str = "finetune") -> Method:
    """Fine-tuning: the task's loss, weight decay on matrices; `slot` is the settings' name."""
    return Method(TaskLoss(head), parameter_groups(model, settings), partial(_explain, slot))


def before_any_update(found: Divergence) -> CheckpointError:
    """The error of a first step: not training is to blame, but what it begins with."""
    return CheckpointError(
        f"The {found.what} is {found.value} at step 1, before any update. The checkpoint's "
        f"weights hold NaN or infinite values: check it, or begin with another model."
    )


def _explain(slot: str, found: Divergence) -> QuantkitError:
    if found.steps == 0:
        return before_any_update(found)
    return RecipeError(
        f"The {found.what} is {found.value} after {found.steps} steps with {slot}.lr {found.lr}: "
        f"training diverged. Lower {slot}.lr, or raise {slot}.warmup, and start over with "
        f"--overwrite."
    )
