"""Ranges that follow the batches of training: what they see, and when they take it in."""

from typing import Any

import torch
from torch import Tensor, nn

from quantkit.algorithms.trained_ranges import Ema
from quantkit.modules import InputQuantizer
from quantkit.numerics import dequantize, static_grid

__all__ = ["RangeWatch", "TokenMask"]


class TokenMask:
    """Where tokens stand in the batch that is being computed: padding must not widen a range.

    A forward pre-hook of the model, which keeps the batch's `attention_mask`.
    """

    def __init__(self) -> None:
        self._mask: Tensor | None = None  # [batch, length]

    def __call__(
        self, module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        """Remember the mask of the arguments of a call."""
        del module
        # The second argument of every family's forward.
        second = positional[1] if len(positional) > 1 else None
        mask = named.get("attention_mask", second)
        self._mask = mask.bool() if isinstance(mask, Tensor) else None

    def tokens(self, x: Tensor) -> Tensor:
        """The rows of `x` [batch, length, in] that belong to tokens; another shape as it is."""
        if self._mask is None or x.shape[:-1] != self._mask.shape:
            return x
        return x[self._mask]


class RangeWatch(nn.Module):
    """The extremes of one input: averaged over steps, and of the step that is going on.

    A batch that is computed again, as gradient checkpointing does, is seen once all the same.

    Args:
        start: its range is where the average begins.
        ranges: the average's decay, and until when it moves.
        symmetric: whether the zero point stays in the middle of the grid.
        tokens: where tokens stand in the batch.
    """

    low: Tensor
    high: Tensor
    seen_low: Tensor
    seen_high: Tensor

    def __init__(
        self, start: InputQuantizer, ranges: Ema, *, symmetric: bool, tokens: TokenMask
    ) -> None:
        super().__init__()
        ends = torch.tensor([start.grid.qmin, start.grid.qmax], dtype=torch.int32)
        low, high = dequantize(ends, start.scale.cpu(), start.zero_point.cpu().int())
        for name, value in (("low", low), ("high", high)):
            self.register_buffer(name, value.clone())
        self.register_buffer("seen_low", torch.tensor(torch.inf))
        self.register_buffer("seen_high", torch.tensor(-torch.inf))
        self.ranges, self.symmetric, self.bits = ranges, symmetric, start.bits
        self.active = True  # until the freeze
        self._tokens = tokens

    @torch.no_grad()
    def note(self, x: Tensor, multiplier: Tensor | None) -> None:
        """See `x` [..., in] times `multiplier` [in] as part of the step that is going on."""
        if self.active:
            rows = self._tokens.tokens(x.float())
            low, high = (rows if multiplier is None else rows * multiplier).aminmax()
            self.seen_low.copy_(torch.minimum(self.seen_low, low))
            self.seen_high.copy_(torch.maximum(self.seen_high, high))

    @torch.no_grad()
    def take(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Average a step's extremes in; returns the scale and zero point of the new range."""
        kept = self.ranges.decay
        self.low.copy_(kept * self.low + (1.0 - kept) * low)
        self.high.copy_(kept * self.high + (1.0 - kept) * high)
        self.seen_low.fill_(torch.inf)
        self.seen_high.fill_(-torch.inf)
        return static_grid(self.low, self.high, self.bits, symmetric=self.symmetric)
