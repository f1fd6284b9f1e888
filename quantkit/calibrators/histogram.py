"""A fixed-range histogram: constant memory, whatever the number of values."""

import torch
from torch import Tensor

__all__ = ["Histogram"]


class Histogram:
    """Counts of values in `bins` equal bins over the known range `low..high`.

    The range is known because an earlier pass recorded each channel's extremes, so no bin
    is ever split or merged. Beside the values it counts each text's own extremes, which
    tells what share of texts a narrower range would clip.
    """

    def __init__(self, low: float, high: float, bins: int = 4096) -> None:
        self.low, self.high, self.bins = low, high, bins
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.text_lows = torch.zeros(bins, dtype=torch.float64)
        self.text_highs = torch.zeros(bins, dtype=torch.float64)

    @property
    def width(self) -> float:
        """Width of one bin, in the unit of the values; 0 for a constant tensor."""
        return (self.high - self.low) / self.bins

    def _count(self, values: Tensor) -> Tensor:
        if self.width <= 0.0:
            index = torch.zeros(values.numel(), dtype=torch.int64)
        else:
            index = ((values.flatten().double() - self.low) / self.width).long()
        return torch.bincount(index.clamp(0, self.bins - 1), minlength=self.bins).double()

    def update(self, text: Tensor) -> None:
        """Add one text's values, any shape, padding already removed."""
        self.counts += self._count(text)
        self.text_lows += self._count(text.amin())
        self.text_highs += self._count(text.amax())

    def quantile(self, share: float) -> float:
        """The value below which `share` of all values lie, linear within its bin."""
        cumulative = self.counts.cumsum(0)
        target = share * float(cumulative[-1])
        index = min(int(torch.searchsorted(cumulative, target)), self.bins - 1)
        before = float(cumulative[index - 1]) if index else 0.0
        inside = float(self.counts[index])
        fraction = (target - before) / inside if inside else 0.0
        return self.low + (index + min(max(fraction, 0.0), 1.0)) * self.width

    def clipped_texts(self, low: float, high: float) -> float:
        """Share of texts with a value outside `low..high`: an upper bound, bins are whole."""
        texts = float(self.text_lows.sum())
        if texts == 0.0:
            return 0.0
        edges = self.low + self.width * torch.arange(self.bins, dtype=torch.float64)
        below = float(self.text_lows[edges + self.width < low].sum())
        above = float(self.text_highs[edges > high].sum())
        return min(1.0, (below + above) / texts)
