"""Training: one plain loop that a kill can interrupt anywhere and `resume` goes on with.

It serves fine-tuning, distillation and quantization-aware training: see `method`.

Under `accelerate launch` every process makes the same batches and takes its share of each.
Losses are sums divided by the number of labels in the whole batch, so that neither the number
of processes nor `accumulation` changes what is learnt.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from quantkit.batching import (
    Encoded,
    References,
    bucketed_batches,
    check_rows,
    collate,
    ordered_batches,
)
from quantkit.errors import QuantkitError
from quantkit.memory import keeping_freed_memory, resident_bytes
from quantkit.method import Divergence, Method, plain
from quantkit.optimization import lr_factor, set_dropout
from quantkit.prediction import Outputs, mean_loss, outputs_of, predict_windows
from quantkit.recipe import Training
from quantkit.training_setup import accelerating, checkpointing, reporting
from quantkit.training_state import Position, StateStore, copy_weights, fingerprint_of, load_weights

__all__ = ["Score", "TrainingResult", "finetune"]

Score = Callable[[References, Outputs], float]  # references, decisions of all rows
Weights = dict[str, Tensor]

CURVE_POINTS = 200  # of a whole run, at most


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tuning run came to.

    The keys of a `history` entry are `epoch` (from 1), `train_loss`, `validation_loss`,
    `validation_score`, `validation_divergence` (where epochs compete by it, see `Method`), `lr`
    (of the epoch's last step), `seconds` and, within them, `validation_seconds`; those of a
    `curve` entry `step`, `loss` (of that step) and `lr`.
    """

    best_score: float  # of the validation rows, in the best epoch
    best_epoch: int  # from 1
    steps: int
    seconds: float  # a resumed run counts the time before the kill, up to the saved state
    history: tuple[dict[str, float], ...]  # one entry per epoch
    curve: tuple[dict[str, float], ...]
    parameters: int
    peak_bytes: int  # of the process's memory at its height, imports and data included
    device_peak_bytes: int | None  # of the GPU's memory, as torch counts it; None on a CPU
    processes: int
    precision: str  # fp32 or bf16
    stopped_early: bool

    @property
    def best(self) -> dict[str, float]:
        """The history's entry of the best epoch."""
        return self.history[self.best_epoch - 1]


def finetune(
    model: nn.Module,
    train: Encoded,
    validation: Encoded,
    settings: Training,
    *,
    pad_token_id: int,
    score: Score,
    state_folder: Path | None,
    method: Method | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train in place and leave `model` with the weights of its best epoch, in eval mode.

    A resumed run goes on from the last saved state, in the middle of an epoch if need be, and
    on a CPU ends with the very bits of a run that was never interrupted.

    Args:
        model: called with a batch; gives `logits`, as transformers' models do.
        train: rows to learn from.
        validation: rows that decide which epoch is the best.
        settings: the recipe's slot.
        pad_token_id: fills the shorter rows of a batch.
        score: of all validation rows; higher is better. Epochs compete by it unless `method` says
            by what else; of equal ones the earlier wins.
        state_folder: where to save every `save_every` steps and after each epoch, or nowhere.
        method: what is minimised, with which knobs; default: plain fine-tuning.
        resume: go on from the state in `state_folder`; without a state, begin.
        progress: show a bar if stderr is a terminal. A line per epoch goes there anyway.
        on_step: called after each step with the number of steps that are done.

    Raises:
        CheckpointError: the first loss is not finite, or the saved state is damaged.
        DataError: no rows, or a label outside the classes.
        RecipeError: training diverged, or the saved state is of other settings or data; of a
            divergence `method` may make another error.
    """
    check_rows(train=train, validation=validation)
    method = method or plain(model, train.head, settings)
    inputs = _Inputs(train, validation, settings, pad_token_id, score, method)
    set_seed(settings.seed)
    set_dropout(model, settings.dropout)
    # `initial_lr` is what the schedule of a resumed run scales.
    groups = [{**group, "initial_lr": group["lr"]} for group in method.groups]
    optimizer = torch.optim.AdamW(groups, fused=True)
    with (
        keeping_freed_memory(),
        accelerating(model, settings.precision) as accelerator,
        checkpointing(model, settings.checkpointing),
        reporting(inputs.steps, on_step, accelerator, shown=progress) as reports,
    ):
        prepared, stepper = accelerator.prepare(model, optimizer)
        fingerprint = inputs.fingerprint(model)
        writes = accelerator.is_main_process
        store = StateStore(state_folder, fingerprint, model, optimizer, writes)
        position, best = store.load() if resume else (Position(), {})
        schedule = LambdaLR(optimizer, inputs.lr_factor, last_epoch=position.step - 1)
        loop = _Loop(inputs, accelerator, prepared, stepper, schedule, store, *reports)
        while position.epoch < settings.epochs and not inputs.stopped(position):
            position = _train_epoch(loop, position, best)
            position, best = _close_epoch(loop, position, best)
        accelerator.wait_for_everyone()
        result = _result(accelerator, inputs, model, position)
    load_weights(model, best)
    model.eval()
    return result


@dataclass(frozen=True)
class _Inputs:
    """What a run is made from."""

    train: Encoded
    validation: Encoded
    settings: Training
    pad_token_id: int
    score: Score
    method: Method

    @property
    def steps(self) -> int:
        return self.settings.epochs * math.ceil(len(self.train) / self.settings.batch_size)

    def lr_factor(self, step: int) -> float:
        return lr_factor(step, self.steps, self.settings.warmup)

    def stopped(self, position: Position) -> bool:
        """Whether so many epochs have passed without a better one that it is enough."""
        patience = self.settings.patience
        return patience is not None and position.epoch - position.best_epoch >= patience

    def fingerprint(self, model: nn.Module) -> str:
        parts: list[object] = [self.train.digest(), self.validation.digest(), self.pad_token_id]
        parts += [] if self.method.identity is None else [self.method.identity]
        return fingerprint_of(model, asdict(self.settings), self.train.head.to_json(), *parts)

    def diverged(self, what: str, value: float, steps: int) -> QuantkitError:
        """The error that a value that is no number ends in, after so many steps."""
        return self.method.explain(Divergence(what, value, steps, self.settings.lr))


@dataclass(frozen=True)
class _Loop:
    """What stays the same through a run."""

    inputs: _Inputs
    accelerator: Accelerator
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
    every = max(1, math.ceil(loop.inputs.steps / CURVE_POINTS))
    loop.model.train()
    for indices in batches[position.batch :]:
        started = time.perf_counter()
        loop.inputs.method.before_step(position.step, loop.inputs.steps)
        labels = data.count(indices)
        loss = _step(loop, indices, max(1, labels), position.step)
        position = position.after_step(loss * labels, labels, time.perf_counter() - started)
        if position.step % every == 0:
            position = position.with_point(loss, _lr(loop.inputs, position.step))
        if position.step % settings.save_every == 0:
            loop.store.save(position, best)
        loop.stepped(position.step)
    return position


def _step(loop: _Loop, indices: Sequence[int], labels: int, step: int) -> float:
    """One update with the windows `indices`; returns their mean loss over all `labels`."""
    accelerator, settings = loop.accelerator, loop.inputs.settings
    parts = _parts(indices, settings.accumulation, accelerator)
    total = torch.zeros((), device=accelerator.device)
    for at, (part, weight) in enumerate(parts):
        last = at == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(loop.model):
            loss = _part_loss(loop, part) * (weight / labels)
            total += loss.detach()
            # Data-parallel training averages the gradients; this makes their sum of it.
            accelerator.backward(loss * accelerator.num_processes)
    value = float(accelerator.reduce(total, reduction="sum"))
    if not math.isfinite(value):
        raise loop.inputs.diverged("loss", value, step)
    norm = accelerator.clip_grad_norm_(loop.model.parameters(), settings.gradient_clip)
    if not math.isfinite(float(norm)):
        raise loop.inputs.diverged("norm of the gradient", float(norm), step)
    loop.optimizer.step()
    loop.schedule.step()
    loop.optimizer.zero_grad()
    return value


def _part_loss(loop: _Loop, indices: Sequence[int]) -> Tensor:
    data, device = loop.inputs.train, loop.accelerator.device
    batch = collate(data, indices, loop.inputs.pad_token_id)
    labels = batch.pop("labels").to(device)
    inputs = {name: value.to(device) for name, value in batch.items()}
    return loop.inputs.method.objective(loop.model, inputs, labels)


def _parts(
    indices: Sequence[int], accumulation: int, accelerator: Accelerator
) -> list[tuple[Sequence[int], float]]:
    """The process's own share of a batch, in parts, each with the weight of its loss.

    Every process makes equally many parts, because each of them waits for the others; where
    rows are too few, a part repeats one of them with weight 0.
    """
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    size = math.ceil(len(indices) / accelerator.num_processes)
    count = min(accumulation, size)
    parts = [mine[at::count] for at in range(count)]
    return [(part, 1.0) if part else (indices[:1], 0.0) for part in parts]


def _close_epoch(loop: _Loop, position: Position, best: Weights) -> tuple[Position, Weights]:
    """Measure the validation rows, keep the weights if they are the best, save and report."""
    started = time.perf_counter()
    inputs, settings, epoch = loop.inputs, loop.inputs.settings, position.epoch + 1
    found = _validate(loop, position.step)
    validation_seconds = time.perf_counter() - started
    entry = {
        "epoch": float(epoch),
        "train_loss": position.loss_sum / max(1, position.labels),
        **found,
        "lr": _lr(inputs, position.step),
        "seconds": position.seconds + validation_seconds,
        "validation_seconds": validation_seconds,
    }
    position = position.after_epoch(inputs.method.rank(entry), entry)
    if position.best_epoch == epoch:
        best = copy_weights(loop.store.model)
    loop.store.save(position, best)
    loop.say(_line(entry, settings.epochs))
    return position, best


def _validate(loop: _Loop, steps: int) -> dict[str, float]:
    """What an epoch's entry says of the validation rows, each process predicting its share."""
    data, accelerator = loop.inputs.validation, loop.accelerator
    batches = ordered_batches(data.lengths(), loop.inputs.settings.batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    model = loop.store.model  # not the prepared one, which would wait for the other processes
    windows = predict_windows(model, data, mine, loop.inputs.pad_token_id)
    if accelerator.num_processes > 1:
        windows = dict(gather_object(list(windows.items())))
    outputs = outputs_of(data, windows)
    loss = mean_loss(data, outputs)
    if not math.isfinite(loss):
        raise loop.inputs.diverged("validation loss", loss, steps)
    score = float(loop.inputs.score(data.references(), outputs))
    return {"validation_loss": loss, **loop.inputs.method.standing(score, outputs)}


def _lr(inputs: _Inputs, steps: int) -> float:
    """The learning rate of the last of `steps` steps."""
    return inputs.settings.lr * inputs.lr_factor(steps - 1)


def _result(
    accelerator: Accelerator, inputs: _Inputs, model: nn.Module, position: Position
) -> TrainingResult:
    device = accelerator.device
    return TrainingResult(
        best_score=position.history[position.best_epoch - 1]["validation_score"],
        best_epoch=position.best_epoch,
        steps=position.step,
        seconds=sum(entry["seconds"] for entry in position.history),
        history=position.history,
        curve=position.curve,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        peak_bytes=resident_bytes(peak=True),
        device_peak_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        processes=accelerator.num_processes,
        precision={"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        stopped_early=inputs.stopped(position) and position.epoch < inputs.settings.epochs,
    )


def _line(entry: dict[str, float], epochs: int) -> str:
    divergence = entry.get("validation_divergence")
    nearness = "" if divergence is None else f"divergence {divergence:.5f}  "
    return (
        f"epoch {entry['epoch']:.0f}/{epochs}  train loss {entry['train_loss']:.4f}  "
        f"validation loss {entry['validation_loss']:.4f}  "
        f"validation score {entry['validation_score']:.4f}  {nearness}{entry['seconds']:.1f} s"
    )
