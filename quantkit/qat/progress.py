"""What changes in the course of training, by rule and not by gradient."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quantkit.integers import in_groups
from quantkit.numerics import Grid, dequantize, quantize
from quantkit.qat.modules import FakeQuantInput, FakeQuantLinear

__all__ = ["best_multipliers", "set_progress"]

# Share of the steps after which multipliers are chosen anew.
RECHOICE = 0.1


def set_progress(trained: nn.Module, step: int, steps: int) -> None:
    """Say how far training is; call it once before each step, with `step` from 0 to `steps` - 1.

    Once, after a tenth of the steps, the multipliers of two-level weights are chosen anew where
    a layer's error falls. Ranges of `Ema` take in what the last step's batches were, until the
    share `freeze` of the steps; in several processes all of them take in the same.
    """
    modules = list(trained.modules())
    if step == int(RECHOICE * steps) > 0:
        for module in modules:
            if isinstance(module, FakeQuantLinear):
                _choose_again(module)
    watched = [m for m in modules if isinstance(m, FakeQuantInput) and m.watch is not None]
    if watched:
        _follow(watched, step / steps)


@torch.no_grad()
def _follow(inputs: list[FakeQuantInput], done: float) -> None:
    """Let ranges take in what has been seen since the last call, in all processes."""
    watches = [each.watch for each in inputs if each.watch is not None]
    low = torch.stack([watch.seen_low for watch in watches])
    high = torch.stack([watch.seen_high for watch in watches])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
    for at, (reader, watch) in enumerate(zip(inputs, watches, strict=True)):
        if watch.active and torch.isfinite(low[at]):
            scale, zero_point = watch.take(low[at], high[at])
            reader.base_scale.copy_(scale)
            reader.base_zero.copy_(zero_point)
        watch.active = done < watch.ranges.freeze


@torch.no_grad()
def _choose_again(module: FakeQuantLinear) -> None:
    if module.multipliers is None:
        return
    found = best_multipliers(
        module.weight, module.scale, module.multipliers, module.grid, module.largest_multiplier
    )
    module.multipliers.copy_(found)


def best_multipliers(
    weight: Tensor, scale: Tensor, multipliers: Tensor, grid: Grid, largest: int
) -> Tensor:
    """Multipliers int8 [rows, groups] of least squared error at the given scales.

    A group keeps the one it has unless another one's error is smaller.

    Args:
        weight: float32 [rows, columns].
        scale: float32 [rows, 1].
        multipliers: int8 [rows, groups], as they are now.
        grid: of the codes.
        largest: multiplier.
    """
    zero = torch.zeros((), dtype=grid.dtype, device=weight.device)
    grouped = in_groups(weight, multipliers.shape[-1])

    def error(candidate: Tensor) -> Tensor:
        step = (scale * candidate)[..., None]
        found = dequantize(quantize(grouped, step, zero, grid), step, zero)
        squares: Tensor = (found - grouped).square()
        return squares.sum(-1)

    best, least = multipliers, error(multipliers)
    for value in range(1, largest + 1):
        candidate = torch.full_like(multipliers, value)
        found = error(candidate)
        best, least = torch.where(found < least, candidate, best), torch.minimum(least, found)
    return best
