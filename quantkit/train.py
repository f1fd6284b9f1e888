"""Fine-tuning: one plain loop that a kill can interrupt anywhere and `resume` goes on with."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from quantkit.batching import Encoded, bucketed_batches, check_rows, collate, ordered_batches
from quantkit.errors import CheckpointError, DataError, QuantkitError, RecipeError
from quantkit.recipe import Finetune
from quantkit.training_state import Position, StateStore, copy_weights, fingerprint_of, load_weights

__all__ = [
    "Score",
    "TrainingResult",
    "finetune",
    "lr_factor",
    "parameter_groups",
    "predict_logits",
    "set_dropout",
]

Score = Callable[[NDArray[np.int64], NDArray[np.int64]], float]  # labels, predictions: [rows]
Weights = dict[str, Tensor]

_DROPOUT_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tuning run came to; `history` has one entry per epoch.

    The keys of an entry are `epoch` (from 1), `train_loss`, `validation_loss`,
    `validation_score`, `lr` (of the epoch's last step) and `seconds`.
    """

    best_score: float
    best_epoch: int  # from 1
    steps: int
    seconds: float  # a resumed run counts the time before the kill, up to the saved state
    history: tuple[dict[str, float], ...]


def finetune(
    model: nn.Module,
    train: Encoded,
    validation: Encoded,
    settings: Finetune,
    *,
    pad_token_id: int,
    classes: int,
    score: Score,
    state_folder: Path | None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train in place and leave `model` with the weights of its best epoch, in eval mode.

    A resumed run goes on from the last saved state, in the middle of an epoch if need be, and
    on a CPU ends with the very bits of a run that was never interrupted.

    Args:
        model: called with a batch; gives `loss` and `logits` [rows, classes], as transformers do.
        train: rows to learn from.
        validation: rows that decide which epoch is the best.
        settings: the recipe's slot.
        pad_token_id: fills the shorter rows of a batch.
        classes: labels are 0 to classes - 1.
        score: higher is better; of equal epochs the earlier one wins.
        state_folder: where to save every `save_every` steps and after each epoch, or nowhere.
        resume: go on from the state in `state_folder`; without a state, begin.
        progress: show a bar if stderr is a terminal. A line per epoch goes there anyway.
        on_step: called after each step with the number of steps that are done.

    Raises:
        CheckpointError: the first loss is not finite, or the saved state is damaged.
        DataError: no rows, or a label outside the classes.
        RecipeError: training diverged, or the saved state is of other settings or data.
    """
    check_rows(classes, train=train, validation=validation)
    inputs = _Inputs(train, validation, settings, pad_token_id, score)
    set_seed(settings.seed)
    set_dropout(model, settings.dropout)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings))
    store = StateStore(state_folder, inputs.fingerprint(model), model, optimizer)
    with (
        _accelerator(model, settings.precision) as accelerator,
        _reporter(inputs.steps, on_step, shown=progress) as reports,
    ):
        prepared, stepper = accelerator.prepare(model, optimizer)
        position, best = store.load() if resume else (Position(), {})
        schedule = LambdaLR(optimizer, inputs.lr_factor, last_epoch=position.step - 1)
        loop = _Loop(inputs, accelerator, prepared, stepper, schedule, store, *reports)
        while position.epoch < settings.epochs:
            position = _train_epoch(loop, position, best)
            position, best = _close_epoch(loop, position, best)
    load_weights(model, best)
    model.eval()
    seconds = sum(entry["seconds"] for entry in position.history)
    return TrainingResult(
        position.best_score, position.best_epoch, position.step, seconds, position.history
    )


def predict_logits(
    model: nn.Module, encoded: Encoded, *, pad_token_id: int, batch_size: int = 32
) -> NDArray[np.float32]:
    """Logits [rows, classes] of all rows, in their own order; `model` keeps its train mode.

    Raises:
        DataError: no rows.
    """
    if not len(encoded):
        raise DataError("There are no rows to predict. Check the split of the dataset.")
    device = next(model.parameters()).device
    batches = ordered_batches(encoded.lengths(), batch_size)
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    with torch.no_grad():
        for indices in batches:
            batch = collate(encoded, indices, pad_token_id)
            inputs = {name: batch[name].to(device) for name in batch if name != "labels"}
            found.append(model(**inputs).logits.float().cpu())
    model.train(was_training)
    logits = torch.cat(found)
    order = torch.tensor([index for indices in batches for index in indices])
    rows: NDArray[np.float32] = torch.empty_like(logits).index_copy_(0, order, logits).numpy()
    return rows


def set_dropout(model: nn.Module, share: float) -> None:
    """Give all dropout layers, and the fields of the configuration that name one, `share`.

    The attention of transformers 5 reads the share from a dropout layer's `p`, that of
    transformers 4 from a number `dropout_prob` of its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        if hasattr(module, "dropout_prob"):
            vars(module)["dropout_prob"] = share
    config = getattr(model, "config", None)
    for name in _DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, share)


def parameter_groups(model: nn.Module, settings: Finetune) -> list[dict[str, Any]]:
    """AdamW's two groups: matrices with weight decay; biases and norm weights without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    # `initial_lr` is what the schedule of a resumed run scales.
    rates = {"lr": settings.lr, "initial_lr": settings.lr}
    return [
        {"params": matrices, "weight_decay": settings.weight_decay, **rates},
        {"params": vectors, "weight_decay": 0.0, **rates},
    ]


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` share of the steps, is 1 at the step after them
    and falls linearly to 0 behind the last step. No step is made with 0.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / (steps - rising)


@dataclass(frozen=True)
class _Inputs:
    """What a run is made from."""

    train: Encoded
    validation: Encoded
    settings: Finetune
    pad_token_id: int
    score: Score

    @property
    def steps(self) -> int:
        return self.settings.epochs * math.ceil(len(self.train) / self.settings.batch_size)

    def lr_factor(self, step: int) -> float:
        return lr_factor(step, self.steps, self.settings.warmup)

    def fingerprint(self, model: nn.Module) -> str:
        parts = [asdict(part) for part in (self.settings, self.train, self.validation)]
        return fingerprint_of(model, *parts, self.pad_token_id)


@dataclass(frozen=True)
class _Loop:
    """What stays the same through a run."""

    inputs: _Inputs
    accelerator: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    store: StateStore
    stepped: Callable[[int], None]
    say: Callable[[str], None]


def _train_epoch(loop: _Loop, position: Position, best: Weights) -> Position:
    """Make the steps of the epoch that are left."""
    data, settings = loop.inputs.train, loop.inputs.settings
    batches = bucketed_batches(data.lengths(), settings.batch_size, settings.seed, position.epoch)
    loop.model.train()
    for indices in batches[position.batch :]:
        started = time.perf_counter()
        batch = collate(data, indices, loop.inputs.pad_token_id)
        loss = _step(loop, batch, position.step)
        position = position.after_step(loss * len(indices), time.perf_counter() - started)
        if position.step % settings.save_every == 0:
            loop.store.save(position, best)
        loop.stepped(position.step)
    return position


def _step(loop: _Loop, batch: dict[str, Tensor], step: int) -> float:
    """One update; returns the batch's mean loss."""
    settings, device = loop.inputs.settings, loop.accelerator.device
    loss = loop.model(**{name: value.to(device) for name, value in batch.items()}).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _diverged("loss", value, step, settings.lr)
    loop.accelerator.backward(loss)
    norm = loop.accelerator.clip_grad_norm_(loop.model.parameters(), settings.gradient_clip)
    if not math.isfinite(float(norm)):
        raise _diverged("norm of the gradient", float(norm), step, settings.lr)
    loop.optimizer.step()
    loop.schedule.step()
    loop.optimizer.zero_grad()
    return value


def _close_epoch(loop: _Loop, position: Position, best: Weights) -> tuple[Position, Weights]:
    """Measure the validation rows, keep the weights if they are the best, save and report."""
    started = time.perf_counter()
    inputs, settings, epoch = loop.inputs, loop.inputs.settings, position.epoch + 1
    loss, value = _validate(loop.model, inputs)
    if not math.isfinite(loss):
        raise _diverged("validation loss", loss, position.step, settings.lr)
    entry = {
        "epoch": float(epoch),
        "train_loss": position.loss_sum / len(inputs.train),
        "validation_loss": loss,
        "validation_score": value,
        "lr": settings.lr * inputs.lr_factor(position.step - 1),
        "seconds": position.seconds + time.perf_counter() - started,
    }
    position = position.after_epoch(value, entry)
    if position.best_epoch == epoch:
        best = copy_weights(loop.store.model)
    loop.store.save(position, best)
    loop.say(_line(entry, settings.epochs))
    return position, best


def _validate(model: nn.Module, inputs: _Inputs) -> tuple[float, float]:
    """Mean cross-entropy and score of the validation rows."""
    logits = predict_logits(
        model,
        inputs.validation,
        pad_token_id=inputs.pad_token_id,
        batch_size=inputs.settings.batch_size,
    )
    labels = np.array(inputs.validation.labels, dtype=np.int64)
    loss = F.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    return float(loss), float(inputs.score(labels, logits.argmax(-1)))


@contextmanager
def _accelerator(model: nn.Module, precision: str) -> Iterator[Any]:
    """An accelerator for one run, which leaves no trace in the process or in `model`."""
    # Accelerate keeps one precision per process and refuses a second run with another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
    if accelerator.num_processes != 1:
        raise RecipeError(
            f"Fine-tuning was launched as {accelerator.num_processes} processes, and quantkit "
            f"trains in one. Start it without `accelerate launch` and `torchrun`."
        )
    try:
        yield accelerator
    finally:
        # Accelerate's own unwrapping would also strip what transformers wraps `forward` in.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(model).pop(name, None)


@contextmanager
def _reporter(
    steps: int, on_step: Callable[[int], None] | None, *, shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on stderr if that is a terminal, and a way to print a line there in any case."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("fine-tuning", total=steps)

        def stepped(step: int) -> None:
            bar.update(task, completed=step)
            if on_step is not None:
                on_step(step)

        yield stepped, partial(console.print, soft_wrap=True, highlight=False)


def _diverged(what: str, value: float, steps: int, lr: float) -> QuantkitError:
    if steps == 0:
        return CheckpointError(
            f"The {what} is {value} at step 1, before any update. The checkpoint's weights hold "
            f"NaN or infinite values: check it, or begin with another model."
        )
    return RecipeError(
        f"The {what} is {value} after {steps} steps with finetune.lr {lr}: training diverged. "
        f"Lower finetune.lr, or raise finetune.warmup, and start over with --overwrite."
    )


def _line(entry: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {entry['epoch']:.0f}/{epochs}  train loss {entry['train_loss']:.4f}  "
        f"validation loss {entry['validation_loss']:.4f}  "
        f"validation score {entry['validation_score']:.4f}  {entry['seconds']:.1f} s"
    )
