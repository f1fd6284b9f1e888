"""Fixed-range histograms: constant memory, whatever the number of values."""

import torch
from torch import Tensor

__all__ = ["Histogram", "by_range", "default_bins"]


def default_bins(ranges: int) -> int:
    """Bins of each of `ranges` histograms: 4096 for up to 64, and at least 512.

    Between, their product stays at 2**18, or 2 MB of counts: 1 range has 4096 bins (32 KB), 128
    have 2048, 256 have 1024. From 512 on memory grows by 4 KB a range: the 3072 channels of
    BERT-base's widest tensor take 12.6 MB.
    """
    return max(512, min(4096, 1 << max(0, 18 - (ranges - 1).bit_length())))


def by_range(values: Tensor, ranges: int) -> Tensor:
    """Values [..., channels] as [ranges, values]: consecutive channels share a range.

    One range is per tensor, as many as channels is per channel, and 24 on 768 channels are
    groups of 32.

    Raises:
        ValueError: the channels cannot be divided into so many groups.
    """
    if ranges == 1:
        return values.reshape(1, -1)
    if values.shape[-1] % ranges:
        raise ValueError(f"{values.shape[-1]} channels cannot be divided into {ranges} groups")
    width = values.shape[-1] // ranges
    return values.reshape(-1, ranges, width).transpose(0, 1).reshape(ranges, -1)


class Histogram:
    """For each of n ranges, counts of values in equal bins over the known `low..high`.

    The range is known because an earlier pass recorded each channel's extremes, so no bin
    is ever split or merged; a value outside, which only float rounding can bring, counts in
    the bin at that end. With one range it counts each text's own extremes too, which
    tells what share of texts a narrower range would clip.

    low, high   [n], float32
    counts      [n, bins], float64, exact up to 2**53
    """

    def __init__(self, low: Tensor, high: Tensor, bins: int | None = None) -> None:
        self.low, self.high = low, high
        self.bins = default_bins(len(low)) if bins is None else bins
        self.counts = torch.zeros(len(low), self.bins, dtype=torch.float64)
        self.text_lows = torch.zeros(self.bins, dtype=torch.float64)
        self.text_highs = torch.zeros(self.bins, dtype=torch.float64)

    @property
    def width(self) -> Tensor:
        """Width of a bin of each range [n], float64; 0 for a constant tensor."""
        return (self.high.double() - self.low.double()) / self.bins

    @property
    def edges(self) -> Tensor:
        """Where bins begin, and the last one's end: [n, bins + 1], float64."""
        shares = torch.arange(self.bins + 1, dtype=torch.float64) / self.bins
        # `lerp` is exact at both ends: `low + (high - low)` loses a high that is tiny beside low.
        return self.low.double()[:, None].lerp(self.high.double()[:, None], shares)

    @property
    def centres(self) -> Tensor:
        """The middle of each bin: [n, bins], float64."""
        edges = self.edges
        return (edges[:, :-1] + edges[:, 1:]) / 2

    def update(self, text: Tensor) -> None:
        """Add one text's values [..., channels], at least one, padding already removed.

        Raises:
            ValueError: channels that cannot be divided among the ranges.
        """
        ranges = len(self.low)
        index = self._bins(by_range(text, ranges))
        flat = index + self.bins * torch.arange(ranges)[:, None]
        # In place: `bincount` would make a second array of all counts for every text.
        self.counts.view(-1).index_add_(
            0, flat.flatten(), torch.ones(flat.numel(), dtype=torch.float64)
        )
        if ranges == 1:
            self.text_lows[index.min()] += 1.0
            self.text_highs[index.max()] += 1.0

    def quantile(self, share: float) -> Tensor:
        """The value below which `share` of the values lie, linear in its bin: [n], float64."""
        cumulative = self.counts.cumsum(1)
        target = share * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target).clamp(max=self.bins - 1)
        inside = self.counts.gather(1, index)
        before = cumulative.gather(1, index) - inside
        fraction = torch.where(inside > 0.0, (target - before) / inside.clamp(min=1.0), 0.0)
        place = (index + fraction.clamp(0.0, 1.0)).squeeze(1)
        return self.low.double().lerp(self.high.double(), place / self.bins)

    def clipped_texts(self, low: Tensor, high: Tensor) -> float:
        """Share of texts with a value outside `low..high` [1].

        A text counts when the whole bin of its extreme lies outside, and twice when it is
        clipped at both ends; the share is never above 1.

        Raises:
            ValueError: the histogram has several ranges, and so does not count texts.
        """
        if len(self.low) != 1:
            raise ValueError("texts are counted per tensor only")
        texts = float(self.text_lows.sum())
        if texts == 0.0:
            return 0.0
        edges = self.edges[0]
        below = float(self.text_lows[edges[1:] < low.double()].sum())
        above = float(self.text_highs[edges[:-1] > high.double()].sum())
        return min(1.0, (below + above) / texts)

    def _bins(self, values: Tensor) -> Tensor:
        """The bin of each value [n, values]."""
        width = self.width[:, None]
        # A constant tensor has bins of no width: its values all count in the first.
        width = width.masked_fill(width == 0.0, 1.0)
        steps = (values.double() - self.low.double()[:, None]).div_(width)
        return steps.long().clamp_(0, self.bins - 1)
