"""Second moments of the tensors that Linears read: what rounding and bias correction ask for.

A Hessian [in, in] grows with the square of the width, so the layers are served in turns, each
turn one pass over the texts with a bounded sum of Hessians in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from quantkit.calibration import Batch, each_input
from quantkit.encoder import SharedInput
from quantkit.modules import InputQuantizer, TokenQuantizer
from quantkit.numerics import dequantize

__all__ = ["InputMoments", "collect_moments", "in_turns"]


class InputMoments:
    """E[x xᵀ], E[x] and E[x̂] of one smoothed tensor x over tokens; x̂ is x on its grid."""

    def __init__(self) -> None:
        self._tokens = 0
        self._products = torch.empty(0)
        self._sums = torch.empty(0)
        self._quantized_sums = torch.empty(0)

    def update(self, rows: Tensor, quantized: Tensor) -> None:
        """Add rows [n, in] of x, and the same of x̂."""
        if not self._tokens:
            width = rows.shape[1]
            self._products = torch.zeros(width, width)
            self._sums, self._quantized_sums = torch.zeros(width), torch.zeros(width)
        self._products.addmm_(rows.T, rows)
        self._sums += rows.sum(0)
        self._quantized_sums += quantized.sum(0)
        self._tokens += len(rows)

    @property
    def hessian(self) -> Tensor:
        """E[x xᵀ] [in, in], float32."""
        return self._products / self._tokens

    @property
    def mean(self) -> Tensor:
        """E[x] [in]."""
        return self._sums / self._tokens

    @property
    def quantized_mean(self) -> Tensor:
        """E[x̂] [in]."""
        return self._quantized_sums / self._tokens


def collect_moments(
    model: nn.Module,
    inputs: Sequence[SharedInput],
    multipliers: Mapping[SharedInput, Tensor | None],
    quantizers: Mapping[SharedInput, InputQuantizer | TokenQuantizer | None],
    batches: Iterable[Batch],
) -> dict[SharedInput, InputMoments]:
    """One pass over the texts, for some of the inputs.

    Args:
        model: float.
        inputs: to be watched.
        multipliers: of the smoothing, [in] or None, by input.
        quantizers: of the inputs, None where they stay in float; their own multipliers are
            those above, or None where these are folded into a producer.
        batches: the calibration texts.
    """
    moments = {shared: InputMoments() for shared in inputs}

    def record(shared: SharedInput, texts: list[Tensor]) -> None:
        rows, multiplier = torch.cat(texts), multipliers[shared]
        smoothed = rows if multiplier is None else rows * multiplier
        quantizer = quantizers[shared]
        if quantizer is None:
            moments[shared].update(smoothed, smoothed)
            return
        source = smoothed if quantizer.multiplier is None else rows
        codes, scale, zero_point = quantizer(source)
        moments[shared].update(smoothed, dequantize(codes, scale, zero_point))

    each_input(model, inputs, batches, record)
    return moments


def in_turns(
    calls: Sequence[tuple[SharedInput, ...]], widths: Mapping[SharedInput, int], budget: int
) -> Iterator[list[tuple[SharedInput, ...]]]:
    """`calls` in order, cut so that the float32 Hessians of each part fit into `budget` bytes.

    A part has at least one element, whatever its size.
    """
    part: list[tuple[SharedInput, ...]] = []
    used = 0
    for together in calls:
        size = sum(4 * widths[shared] ** 2 for shared in together)
        if part and used + size > budget:
            yield part
            part, used = [], 0
        part.append(together)
        used += size
    if part:
        yield part
