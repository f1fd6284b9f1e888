"""Fine-tuning: one plain loop that a kill can interrupt anywhere and `resume` goes on with."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from quantkit.batching import Encoded, bucketed_batches, collate, ordered_batches
from quantkit.errors import CheckpointError, DataError, QuantkitError, RecipeError
from quantkit.recipe import Finetune
from quantkit.training_state import (
    Position,
    copy_weights,
    has_state,
    load_state,
    load_weights,
    save_state,
)

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
        model: called with the tensors of a batch; returns an object with `loss` and `logits`
            [rows, classes], like Hugging Face's models for sequence classification.
        train: rows to learn from.
        validation: rows that decide which epoch is the best.
        settings: the recipe's slot.
        pad_token_id: fills the shorter rows of a batch.
        classes: labels are 0 to classes - 1.
        score: higher is better; of equal epochs the earlier one wins.
        state_folder: where to save every `settings.save_every` steps and after each epoch;
            an earlier state there is replaced. None: nowhere.
        resume: go on from the state in `state_folder`; without a state, begin.
        progress: show a bar if stderr is a terminal. A line per epoch goes there anyway.
        on_step: called after each step with the number of steps that are done.

    Raises:
        CheckpointError: the model computes no finite loss, or the saved state is damaged.
        DataError: no rows, or a label outside the classes.
        RecipeError: the loss diverged, or the saved state is of other settings or other data.
    """
    _check(train, classes, "train")
    _check(validation, classes, "validation")
    set_seed(settings.seed)
    set_dropout(model, settings.dropout)
    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    with _accelerator(model, settings.precision) as accelerator:
        optimizer = torch.optim.AdamW(parameter_groups(model, settings))
        prepared, stepper = accelerator.prepare(model, optimizer)
        fingerprint = _fingerprint(model, train, validation, settings, (pad_token_id, classes))
        position, best = Position(), dict[str, Tensor]()
        if resume and state_folder is not None and has_state(state_folder):
            position, best = load_state(state_folder, fingerprint, model, optimizer)
        with _reporter(steps, position.step, shown=progress) as (advance, say):

            def stepped(step: int) -> None:
                advance(step)
                if on_step is not None:
                    on_step(step)

            loop = _Loop(
                settings=settings,
                train=train,
                pad_token_id=pad_token_id,
                accelerator=accelerator,
                model=prepared,
                optimizer=stepper,
                schedule=_schedule(optimizer, settings, steps, position.step),
                save=partial(_save, state_folder, fingerprint, model, optimizer),
                stepped=stepped,
            )
            while position.epoch < settings.epochs:
                position = _train_epoch(loop, position, best)
                position, improved = _close_epoch(loop, position, validation, score)
                best = copy_weights(model) if improved else best
                loop.save(position, best)
                say(_line(position.history[-1], settings.epochs))
    load_weights(model, best)
    model.eval()
    return _result(position)


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

    The attention of transformers' encoders reads the share from a dropout layer's `p`, also
    where it computes with `scaled_dot_product_attention`.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
    config = getattr(model, "config", None)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        if hasattr(config, name):
            setattr(config, name, share)


def parameter_groups(model: nn.Module, settings: Finetune) -> list[dict[str, Any]]:
    """AdamW's two groups: matrices with weight decay; biases and norm weights without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = {
        settings.weight_decay: [parameter for parameter in trained if parameter.ndim > 1],
        0.0: [parameter for parameter in trained if parameter.ndim <= 1],
    }
    if settings.weight_decay == 0.0:
        decays = {0.0: trained}
    return [
        {"params": parameters, "weight_decay": decay, "lr": settings.lr, "initial_lr": settings.lr}
        for decay, parameters in decays.items()
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
class _Loop:
    """What stays the same through a run."""

    settings: Finetune
    train: Encoded
    pad_token_id: int
    accelerator: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    save: Callable[[Position, Weights], None]
    stepped: Callable[[int], None]


def _train_epoch(loop: _Loop, position: Position, best: Weights) -> Position:
    """Make the steps of the epoch that are left."""
    settings = loop.settings
    batches = bucketed_batches(
        loop.train.lengths(), settings.batch_size, settings.seed, position.epoch
    )
    loop.model.train()
    for indices in batches[position.batch :]:
        started = time.perf_counter()
        loss = _step(loop, collate(loop.train, indices, loop.pad_token_id), position.step)
        position = replace(
            position,
            batch=position.batch + 1,
            step=position.step + 1,
            loss_sum=position.loss_sum + loss * len(indices),
            rows=position.rows + len(indices),
            seconds=position.seconds + time.perf_counter() - started,
        )
        if position.step % settings.save_every == 0:
            loop.save(position, best)
        loop.stepped(position.step)
    return position


def _step(loop: _Loop, batch: dict[str, Tensor], step: int) -> float:
    """One update; returns the batch's mean loss."""
    device = loop.accelerator.device
    loss = loop.model(**{name: value.to(device) for name, value in batch.items()}).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _diverged("loss", value, step, loop.settings.lr)
    loop.accelerator.backward(loss)
    norm = float(
        loop.accelerator.clip_grad_norm_(loop.model.parameters(), loop.settings.gradient_clip)
    )
    if not math.isfinite(norm):
        raise _diverged("gradient", norm, step, loop.settings.lr)
    loop.optimizer.step()
    loop.schedule.step()
    loop.optimizer.zero_grad()
    return value


def _close_epoch(
    loop: _Loop, position: Position, validation: Encoded, score: Score
) -> tuple[Position, bool]:
    """Measure the validation rows; also tells whether this is the best epoch so far."""
    started = time.perf_counter()
    logits = predict_logits(
        loop.model,
        validation,
        pad_token_id=loop.pad_token_id,
        batch_size=loop.settings.batch_size,
    )
    labels = np.array(validation.labels, dtype=np.int64)
    value = float(score(labels, logits.argmax(-1)))
    entry = {
        "epoch": float(position.epoch + 1),
        "train_loss": position.loss_sum / position.rows,
        "validation_loss": float(F.cross_entropy(torch.tensor(logits), torch.tensor(labels))),
        "validation_score": value,
        "lr": loop.settings.lr * loop.schedule.lr_lambdas[0](position.step - 1),
        "seconds": position.seconds + time.perf_counter() - started,
    }
    improved = position.best_score is None or value > position.best_score
    return Position(
        epoch=position.epoch + 1,
        step=position.step,
        best_score=value if improved else position.best_score,
        best_epoch=position.epoch + 1 if improved else position.best_epoch,
        history=(*position.history, entry),
    ), improved


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
    steps: int, done: int, *, shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on stderr if that is a terminal, and a way to print a line there in any case."""
    console = Console(stderr=True)
    columns = (TextColumn("fine-tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("fine-tuning", total=steps, completed=done)
        yield (
            lambda step: bar.update(task, completed=step),
            lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False),
        )


def _schedule(
    optimizer: torch.optim.Optimizer, settings: Finetune, steps: int, done: int
) -> LambdaLR:
    return LambdaLR(
        optimizer, partial(lr_factor, steps=steps, warmup=settings.warmup), last_epoch=done - 1
    )


def _save(
    folder: Path | None,
    fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    best: Weights,
) -> None:
    if folder is not None:
        save_state(folder, fingerprint, position, model, optimizer, best)


def _fingerprint(
    model: nn.Module,
    train: Encoded,
    validation: Encoded,
    settings: Finetune,
    numbers: tuple[int, ...],
) -> str:
    """SHA-256 of all that a resumed run must share with its beginning."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    rows = [dataclasses.asdict(data) for data in (train, validation)]
    everything = [dataclasses.asdict(settings), shapes, rows, numbers]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _check(rows: Encoded, classes: int, split: str) -> None:
    if not len(rows):
        raise DataError(f"The {split} split has no rows. Fine-tuning needs at least one.")
    outside = sorted({label for label in rows.labels if not 0 <= label < classes})
    if outside:
        raise DataError(
            f"The {split} split has label {outside[0]}, and with {classes} classes labels are 0 "
            f"to {classes - 1}. Check the labels of the dataset."
        )


def _diverged(what: str, value: float, step: int, lr: float) -> QuantkitError:
    if step == 0:
        return CheckpointError(
            f"The {what} is {value} at step 1, before any update. The checkpoint's weights hold "
            f"NaN or infinite values: check it, or begin with another model."
        )
    return RecipeError(
        f"The {what} is {value} at step {step + 1} with finetune.lr {lr}: training diverged. "
        f"Lower finetune.lr, or raise finetune.warmup, and start over with --overwrite."
    )


def _line(entry: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {entry['epoch']:.0f}/{epochs}  train loss {entry['train_loss']:.4f}  "
        f"validation loss {entry['validation_loss']:.4f}  "
        f"validation score {entry['validation_score']:.4f}  {entry['seconds']:.1f} s"
    )


def _result(position: Position) -> TrainingResult:
    assert position.best_score is not None, "at least one epoch is complete"
    return TrainingResult(
        best_score=position.best_score,
        best_epoch=position.best_epoch,
        steps=position.step,
        seconds=sum(entry["seconds"] for entry in position.history),
        history=position.history,
    )
