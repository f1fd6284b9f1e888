"""Second moments of the tensors that Linears read: what rounding and compensation ask for.

A Hessian [in, in] grows with the square of the width, so the layers are served in turns, each
turn one pass over the texts with a bounded sum of Hessians in memory. Of the float model a pass
goes on where the one before has ended.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from quantkit.algorithms.hadamard import as_read
from quantkit.calibration import Batch, Texts, each_input
from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.modules import InputQuantizer, TokenQuantizer
from quantkit.numerics import dequantize
from quantkit.replay import Replay

__all__ = ["InputMoments", "MomentCollector", "in_turns", "stride_for"]


class InputMoments:
    """Second moments over tokens, with the means E[x] and E[x̂].

    x is a smoothed (and rotated) tensor of the float model, x̂ what is read in its place: x on
    its grid, or, of a pair, what the quantized layers before make of the text, on that grid. A
    pair has E[x̂ x̂ᵀ] and E[x x̂ᵀ]. Otherwise there is E[x xᵀ] alone: for rounding without
    compensation it measured better than E[x̂ x̂ᵀ], which takes the grid's noise for directions of
    the input.
    """

    def __init__(self, width: int, *, paired: bool) -> None:
        self._tokens = 0
        self._products = torch.zeros(width, width)
        self._crossed = torch.zeros(width, width) if paired else None
        self._sums, self._read_sums = torch.zeros(width), torch.zeros(width)

    def update(self, exact: Tensor, read: Tensor) -> None:
        """Add rows [n, in] of x and the same of x̂."""
        before, self._tokens = self._tokens, self._tokens + len(exact)
        # Means all the way, so that nobody needs a second matrix to divide sums by tokens.
        shares = {"beta": before / self._tokens, "alpha": 1.0 / self._tokens}
        if self._crossed is None:
            self._products.addmm_(exact.T, exact, **shares)
        else:
            self._products.addmm_(read.T, read, **shares)
            self._crossed.addmm_(exact.T, read, **shares)
        self._sums += exact.sum(0)
        self._read_sums += read.sum(0)

    @property
    def hessian(self) -> Tensor:
        """E[x̂ x̂ᵀ] [in, in] of a pair, else E[x xᵀ], float32."""
        return self._products

    @property
    def cross(self) -> Tensor | None:
        """E[x x̂ᵀ] [in, in], float32."""
        return self._crossed

    @property
    def mean(self) -> Tensor:
        """E[x] [in]."""
        return self._sums / self._tokens

    @property
    def read_mean(self) -> Tensor:
        """E[x̂] [in]."""
        return self._read_sums / self._tokens


class MomentCollector:
    """Runs the calibration texts and accumulates moments of chosen inputs.

    Args:
        model: float, unrolled.
        encoder: its plan.
        multipliers: of the smoothing, [in] or None, by input.
        rotations: blocks of those inputs that are rotated.
        folded: inputs whose multiplier the quantized Linear before them has applied already.
        quantizers: of the inputs whose x̂ is asked for; others are read as floats.
        batches: the calibration texts.
        strides: of an input every so many of them are read; not given: all.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: EncoderPlan,
        multipliers: Mapping[SharedInput, Tensor | None],
        rotations: Mapping[SharedInput, int],
        folded: Collection[SharedInput],
        quantizers: Mapping[SharedInput, InputQuantizer | TokenQuantizer | None],
        batches: Sequence[Batch],
        strides: Mapping[SharedInput, int],
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._multipliers = multipliers
        self._rotations = rotations
        self._folded = folded
        self._quantizers = quantizers
        least = min(strides.values(), default=1)
        self._batches = batches[::least]
        self._strides = {shared: stride // least for shared, stride in strides.items()}
        self._replay = Replay(model, encoder, lambda: self._batches)

    def collect(
        self,
        inputs: Sequence[SharedInput],
        widths: Mapping[SharedInput, int],
        following: SharedInput | None,
    ) -> dict[SharedInput, InputMoments]:
        """Moments E[x xᵀ] and means of `inputs`, in one pass through their layers.

        Args:
            inputs: to be watched; those of later calls lie in no earlier layer.
            widths: channels of each.
            following: the first that the next call will ask for; None if this is the last call.
        """
        moments = {shared: InputMoments(widths[shared], paired=False) for shared in inputs}
        seen = dict.fromkeys(inputs, 0)

        def record(shared: SharedInput, texts: Texts) -> None:
            if shared not in moments:
                return  # only the pass's end
            if seen[shared] % self._strides.get(shared, 1) == 0:
                rows = self._prepared(shared, texts, self._multipliers[shared])
                moments[shared].update(rows, self._read(shared, rows))
            seen[shared] += 1

        first, last = (self._encoder.layers_before(inputs[at]) for at in (0, -1))
        after = first if following is None else self._encoder.layers_before(following)
        watched = list(inputs)
        if following is not None and after > last:
            watched.append(following)  # the pass has to come to the end of the layer before it
        with self._replay.up_to(first, after):
            each_input(
                self._model,
                watched,
                self._batches,
                record,
                until_last=True,
                arguments=self._encoder.arguments,
            )
        return moments

    def collect_pairs(
        self,
        inputs: Sequence[SharedInput],
        widths: Mapping[SharedInput, int],
        working: nn.Module,
    ) -> dict[SharedInput, InputMoments]:
        """Moments of pairs: x of the float model, x̂ of `working`, both in step.

        Args:
            inputs: to be watched.
            widths: channels of each.
            working: the model as far as it is quantized; of `inputs` its Linears are still float.
        """
        moments = {shared: InputMoments(widths[shared], paired=True) for shared in inputs}
        exact: dict[SharedInput, Tensor] = {}

        def keep(shared: SharedInput, texts: Texts) -> None:
            exact[shared] = self._prepared(shared, texts, self._multipliers[shared])

        def record(shared: SharedInput, texts: Texts) -> None:
            done = shared in self._folded
            arrived = self._prepared(shared, texts, None if done else self._multipliers[shared])
            moments[shared].update(exact.pop(shared), self._read(shared, arrived))

        for batch in self._batches:
            each_input(self._model, inputs, [batch], keep, until_last=True)
            each_input(working, inputs, [batch], record, until_last=True)
        return moments

    def _prepared(self, shared: SharedInput, texts: Texts, multiplier: Tensor | None) -> Tensor:
        return as_read(texts.rows, multiplier, self._rotations.get(shared))

    def _read(self, shared: SharedInput, prepared: Tensor) -> Tensor:
        """The values that the input's codes stand for."""
        quantizer = self._quantizers.get(shared)
        return prepared if quantizer is None else dequantize(*quantizer.codes(prepared))


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


def stride_for(batches: Sequence[Batch], tokens: int) -> int:
    """The n of "every n-th batch" that leaves about `tokens` tokens, 1 if they are few.

    Of 16 batches of 2,048 tokens each and 8,192 tokens it is 4.
    """
    held = sum(batch["input_ids"].numel() for batch in batches)
    return max(1, held // tokens)
