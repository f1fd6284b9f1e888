"""What surrounds a training run and is undone behind it: accelerator, checkpointing, progress."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import Progress
from torch import nn

from quantkit.errors import RecipeError

__all__ = ["accelerating", "checkpointing", "processes_of_run", "reporting"]


def processes_of_run() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone.

    Accelerate has to be told that processes without an accelerator belong together.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpus = several and not torch.accelerator.is_available()
    return PartialState(cpu=True) if on_cpus else PartialState()


@contextmanager
def accelerating(model: nn.Module, precision: str) -> Iterator[Any]:
    """An accelerator for one run, which leaves no trace in the process or in `model`."""
    # Accelerate keeps one precision per process and refuses a second run with another.
    AcceleratorState._reset_state()
    if precision == "auto":
        has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if has_it else "fp32"
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
    try:
        yield accelerator
    finally:
        # Accelerate's own unwrapping would also strip what transformers wraps `forward` in.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(model).pop(name, None)


@contextmanager
def checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing for the block's duration."""
    switchable: Any = model
    if not wanted:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise RecipeError(
            f"finetune.checkpointing is true, and a {type(model).__name__} cannot compute its "
            f"activations twice. Set it to false; finetune.accumulation saves memory too."
        )
    # transformers 4.57 and its successors call the same thing by different names.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(switchable, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(switchable, f"{name}_checkpointing_disable")()
        with suppress(AttributeError):  # 4.57 raises it where no hook was made
            switchable.disable_input_require_grads()


@contextmanager
def reporting(
    steps: int, on_step: Callable[[int], None] | None, accelerator: Accelerator, *, shown: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on stderr if that is a terminal, and a way to print a line there in any case."""
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    with Progress(console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("fine-tuning", total=steps)

        def stepped(step: int) -> None:
            bar.update(task, completed=step)
            if on_step is not None:
                on_step(step)

        yield stepped, partial(console.print, soft_wrap=True, highlight=False)
