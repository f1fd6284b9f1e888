"""The recipe's slots that train: fine-tuning, distillation, quantization-aware training."""

from dataclasses import fields, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from quantkit.algorithms.trained_ranges import Lsq, Ranges
from quantkit.config import STRICT

__all__ = ["NOBODY", "SELF", "Distill", "Distillation", "Finetune", "Qat", "Training"]

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0)]

SELF = "self"  # the teacher that is the run's own float model
NOBODY = "none"  # no teacher: the labels alone


@dataclass(frozen=True, config=STRICT)
class Training:
    """What every training run is told: AdamW, linear warm-up and decay, the best epoch wins."""

    epochs: Positive = 3
    batch_size: Positive = 32  # rows per update, over all processes
    accumulation: Positive = 1  # parts that each process makes of its share of a batch
    checkpointing: bool = False  # compute activations twice instead of keeping them
    patience: Positive | None = None  # stop after so many epochs without a better one
    lr: Annotated[float, Field(gt=0.0)] = 2e-5
    warmup: Share = 0.1  # share of all steps
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    dropout: Share = 0.1
    gradient_clip: Annotated[float, Field(gt=0.0)] = 1.0  # global L2 norm
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 on a GPU that has it
    save_every: Positive = 200  # steps between states a killed run can resume from
    seed: Seed = 0


@dataclass(frozen=True, config=STRICT)
class Finetune(Training):
    """Fine-tuning on the task's labels."""


@dataclass(frozen=True, config=STRICT)
class Distillation:
    """How much each part of a loss against a teacher weighs; 0 leaves it out.

    task       the labels' own loss; null: 1 in `distill`, whose student has much to learn, and 0 in
               `qat`, whose student begins as its teacher does and is to stay near it, as in
               TernaryBERT (Zhang et al. 2020, section 3.2)
    logits     the teacher's answers: KL divergence at `temperature`, times its square
    hidden     the layers' outputs: squared error, of tokens normalized first if `normalize`
    attention  relations between tokens in queries, keys and values, of `relation_heads` heads
               (null: as many as the teacher's attention has), in the last layer or in all
    """

    task: Weight | None = None
    logits: Weight = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    hidden: Weight = 1.0
    normalize: bool = True
    attention: Weight = 1.0
    relation_heads: Positive | None = None
    relation_layers: Literal["last", "all"] = "last"

    @model_validator(mode="after")
    def _check(self) -> "Distillation":
        if not (self.logits or self.hidden or self.attention):
            raise ValueError(
                "nothing of the teacher is used: give `logits`, `hidden` or `attention` a weight "
                "above 0, or write `teacher: none`"
            )
        return self

    def with_task(self, default: float) -> "Distillation":
        """The same with the labels' weight written out."""
        return self if self.task is not None else replace(self, task=default)


@dataclass(frozen=True, config=STRICT)
class Distill:
    """A smaller student of the task's fine-tuned model (`quantkit distill`).

    student    the layers it begins with: the teacher's 0, 2, 4, ...
    teacher    `self`, the recipe's own fine-tuned model, or the folder or Hub name of another
    training   null: as `finetune` says
    """

    student: Literal["every-second-layer"] = "every-second-layer"
    teacher: str = SELF
    distillation: Distillation = Field(default_factory=Distillation)
    training: Finetune | None = None


@dataclass(frozen=True, config=STRICT)
class Qat(Training):
    """Quantization-aware training (`quantkit qat`): on from where quantization left the model.

    scales         what becomes of the ranges: `lsq` learns them, `ema` lets those of inputs follow
                   the batches until they are frozen, `fixed` keeps them
    teacher        `self`, the run's float model; `none`; or another's folder or Hub name
    distillation   how much the parts of the loss against the teacher weigh
    control        train the float model on for as many steps, for the report
    """

    epochs: Positive = 2
    lr: Annotated[float, Field(gt=0.0)] = 5e-5
    dropout: Share = 0.0
    scales: Annotated[Ranges, Field(discriminator="name")] = Field(default_factory=Lsq)
    teacher: str = SELF
    distillation: Distillation = Field(default_factory=Distillation)
    control: bool = True

    @model_validator(mode="after")
    def _check_teacher(self) -> "Qat":
        if self.teacher == NOBODY and self.distillation != Distillation():
            raise ValueError(
                "`distillation` weighs what a teacher says, and the teacher is `none`: remove one "
                "of them"
            )
        return self

    def shared(self) -> Training:
        """The settings that plain training has too."""
        return Training(**{each.name: getattr(self, each.name) for each in fields(Training)})
