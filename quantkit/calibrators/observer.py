"""What calibration observes of one stream of tensors: any tensor of a model, in constant memory."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantkit.calibrators.histogram import Histogram, by_range

__all__ = ["MOMENTUM", "Needs", "Observed", "Observer"]

Needs = Literal["extremes", "moving", "histogram"]
"""What a calibrator reads beside the extremes; see `Observer`."""

MOMENTUM = 0.9


@dataclass(frozen=True)
class Observed:
    """What was seen of a tensor that has n ranges; each Tensor is [n], float32.

    n is 1 per tensor, the number of channels per channel, of groups per group.
    """

    low: Tensor
    high: Tensor
    moving_low: Tensor | None = None
    moving_high: Tensor | None = None
    histogram: Histogram | None = None

    def counted(self) -> Histogram:
        """The histogram.

        Raises:
            ValueError: none was filled.
        """
        if self.histogram is None:
            raise ValueError("this calibrator needs a histogram, and none was filled")
        return self.histogram


class Observer:
    """Watch a stream of batches and keep what a calibrator needs.

    extremes    the smallest and the largest value, unless `bounds` tells them beforehand
    moving      and each batch's extremes, averaged: m = momentum * m + (1 - momentum) * batch
    histogram   and counts of values, which needs `bounds`

    Where `bounds` are known and anything but the extremes is needed, the histogram is filled, for
    it also tells what share of texts a range clips. Memory does not depend on how much
    is seen: a few numbers a range, and the histogram (see `default_bins`).
    """

    def __init__(
        self,
        groups: int = 1,
        needs: Needs = "extremes",
        *,
        bounds: tuple[Tensor, Tensor] | None = None,
        momentum: float = MOMENTUM,
        bins: int | None = None,
    ) -> None:
        """Observe `groups` ranges over equal groups of channels: 1 is per tensor.

        `bounds` are the extremes [groups], when an earlier pass has found them.

        Raises:
            ValueError: a histogram without bounds, or bounds of another length than `groups`.
        """
        if needs == "histogram" and bounds is None:
            raise ValueError("a histogram needs bounds: observe the extremes in an earlier pass")
        if bounds is not None and not len(bounds[0]) == len(bounds[1]) == groups:
            raise ValueError(f"{groups} groups need as many bounds, not {len(bounds[0])}")
        self._groups, self._needs, self._momentum = groups, needs, momentum
        self._bounds = self._seen = bounds
        self._moving: tuple[Tensor, Tensor] | None = None
        self._histogram = None
        if bounds is not None and needs != "extremes":
            self._histogram = Histogram(*bounds, bins)

    def update(self, *texts: Tensor) -> None:
        """Add a batch: one tensor [rows, channels] per text, padding already removed.

        Raises:
            ValueError: a value that is not finite, or channels that cannot be divided.
        """
        seen = [text.detach().float() for text in texts if text.numel()]
        if not seen:
            return
        rows = [by_range(text, self._groups) for text in seen]
        low = torch.stack([each.amin(1) for each in rows]).amin(0)
        high = torch.stack([each.amax(1) for each in rows]).amax(0)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise ValueError("a value that is not finite has no place in a range")
        if self._bounds is None:
            old_low, old_high = self._seen or (low, high)
            self._seen = torch.minimum(old_low, low), torch.maximum(old_high, high)
        if self._needs == "moving":
            self._average(low, high)
        if self._histogram is not None:
            for text in seen:
                self._histogram.update(text)

    def observed(self) -> Observed:
        """All that was seen so far.

        Raises:
            ValueError: nothing was.
        """
        if self._seen is None or (self._needs == "moving" and self._moving is None):
            raise ValueError("nothing was observed: update with at least one text")
        low, high = self._seen
        moving_low, moving_high = self._moving or (None, None)
        return Observed(low, high, moving_low, moving_high, self._histogram)

    def _average(self, low: Tensor, high: Tensor) -> None:
        old_low, old_high = self._moving or (low, high)  # the first batch starts the average
        weight = 1.0 - self._momentum
        self._moving = old_low.lerp(low, weight), old_high.lerp(high, weight)
