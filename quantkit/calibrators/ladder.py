"""The search for the range that costs least, along a ladder of shares of both ends.

Both ends matter to one another, because together they make the step, and 100 shares of each are
10,000 pairs. So ten shares of each are tried with each other's first; then each end in turn
goes down its whole ladder while the other stands still, until nothing improves. On normal, GELU,
Laplace, log-normal and Student-t values, on 8 and 4 bits, the squared error found this way was
within 0.1 % of the best of all 10,000 pairs, and the divergence within 1 %, after 301 to 701 of
them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quantkit.numerics import Grid

__all__ = ["Loss", "narrowed", "search"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From `low` and `high` [n] to what they cost [n], float64; infinity rules a range out."""

COARSE = 10
SWEEPS = 8  # 1 to 3 were needed in these cases, the last of them without a change


def narrowed(
    low: Tensor, high: Tensor, low_share: Tensor, high_share: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """The range [n] whose ends are cut to shares [n] of their distance from 0.

    On a symmetric grid, where the wider end alone counts, both are shares of that one. An end
    that lies on the other's side of 0 stays: the grid reaches to 0 there. Shares 0.5 and 0.25
    of -4..8 give -2..2 on an asymmetric grid, and -4..2 on a symmetric one.
    """
    below, above = low.abs(), high.abs()
    if grid.symmetric:
        below = above = torch.maximum(below, above)
    new_low = torch.minimum(torch.maximum(low, -below * low_share), high)
    return new_low, torch.maximum(torch.minimum(high, above * high_share), new_low)


def search(low: Tensor, high: Tensor, grid: Grid, loss: Loss, steps: int) -> tuple[Tensor, Tensor]:
    """The range inside `low..high` [n] that costs least, each row by itself.

    The shares are 1, 1 - 1/steps, ... 1/steps; of ranges that cost the same, the one tried
    first, so the whole range where nothing is better. A symmetric grid has one number to
    choose, and all its shares are tried.
    """
    climb = _Climb(low, high, grid, loss)
    ladder = [torch.full_like(low, step / steps) for step in range(steps, 0, -1)]
    if grid.symmetric:
        for share in ladder:
            climb.consider(share, share)
        return climb.low, climb.high
    coarse = ladder[:: max(1, steps // COARSE)]
    for low_share in coarse:
        for high_share in coarse:
            climb.consider(low_share, high_share)
    for _ in range(SWEEPS):
        before = climb.cost
        for share in ladder:
            climb.consider(share, climb.high_share)
        for share in ladder:
            climb.consider(climb.low_share, share)
        if torch.equal(before, climb.cost):
            break
    return climb.low, climb.high


class _Climb:
    """The best range so far of each row, from the whole range on."""

    def __init__(self, low: Tensor, high: Tensor, grid: Grid, loss: Loss) -> None:
        self._whole, self._grid, self._loss = (low, high), grid, loss
        self.low, self.high = low, high
        self.low_share = self.high_share = torch.ones_like(low)
        self.cost = loss(low, high)

    def consider(self, low_share: Tensor, high_share: Tensor) -> None:
        """Take the range with these shares in the rows where it costs less."""
        low, high = narrowed(*self._whole, low_share, high_share, self._grid)
        cost = self._loss(low, high)
        better = cost < self.cost
        self.cost = torch.where(better, cost, self.cost)
        self.low, self.high = low.where(better, self.low), high.where(better, self.high)
        self.low_share = low_share.where(better, self.low_share)
        self.high_share = high_share.where(better, self.high_share)
