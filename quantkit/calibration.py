"""The passes over calibration texts: they stream, and their memory does not grow with texts.

Pass A records, for every tensor that a Linear reads, each channel's extremes and a bounded
random sample of rows. Pass B, only for calibrators that ask for it, watches the smoothed
tensors, whose extremes are already known exactly: histograms and moving averages, in one pass.
Extremes of rotated tensors do not follow from those of channels, and take a pass of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from quantkit.algorithms.hadamard import as_read
from quantkit.calibrators import Calibrator, Observed, Observer, observer_for
from quantkit.calibrators.histogram import by_range
from quantkit.encoder import SharedInput, describe
from quantkit.errors import CheckpointError, DataError

__all__ = [
    "Batch",
    "InputStatistics",
    "PassEnded",
    "Texts",
    "batches_of",
    "collect_observed",
    "collect_statistics",
    "each_input",
    "extremes",
    "rotated_extremes",
]

Batch = Mapping[str, Tensor]

SAMPLED_ROWS = 512


def batches_of(calibration: Iterable[Batch]) -> list[Batch]:
    """The batches, each of them looked at before anything is computed.

    Raises:
        DataError: it is one batch, or something in it is none.
    """
    if isinstance(calibration, Mapping):
        raise DataError("Calibration is one batch; quantkit takes a list of them: [batch].")
    batches = list(calibration)
    for at, batch in enumerate(batches):
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            found = type(batch).__name__ if ids is None else f"batch of {_shown(ids)}"
            raise DataError(
                f"Calibration batch {at} is a {found}; quantkit takes what a tokenizer makes of "
                f'texts: tokenizer(texts, padding=True, return_tensors="pt").'
            )
    return batches


def _shown(ids: object) -> str:
    return f"ids {list(ids.shape)}" if isinstance(ids, Tensor) else f"{type(ids).__name__}s"


@dataclass(frozen=True)
class Texts:
    """What a batch of texts makes of one tensor, padding removed.

    Attributes:
        rows: float32 [tokens, in], text after text.
        lengths: tokens of each text; 1 where a layer reads one vector per text.
    """

    rows: Tensor
    lengths: Sequence[int]

    @property
    def each(self) -> tuple[Tensor, ...]:
        """The rows [length, in] of every text by itself."""
        return torch.split(self.rows, list(self.lengths))


Sink = Callable[[SharedInput, Texts], None]


class InputStatistics:
    """Each channel's extremes and a uniform sample of rows of one tensor."""

    def __init__(self, seed: int, sampled_rows: int = SAMPLED_ROWS) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.full((sampled_rows,), -1.0)  # of the sample; -1 where there is none yet
        self._sample = torch.empty(sampled_rows, 0)
        self.low = torch.empty(0)  # [in]
        self.high = torch.empty(0)  # [in]

    @property
    def rows(self) -> Tensor:
        """The sample [at most sampled_rows, in]."""
        drawn = self._keys >= 0
        return self._sample if bool(drawn.all()) else self._sample[drawn]

    @property
    def finite(self) -> bool:
        """Whether all values were: the extremes of others are not."""
        return bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all())

    def update(self, values: Tensor) -> None:
        """Add rows [n, in], padding already removed."""
        low, high = values.amin(0), values.amax(0)
        if self.low.numel() == 0:
            self.low, self.high = low, high
            self._sample = values.new_empty(len(self._keys), values.shape[1])
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        # Every row draws a random key; the rows with the largest keys are a uniform sample.
        keys = torch.rand(len(values), generator=self._generator)
        kept = torch.cat([self._keys, keys]).topk(len(self._keys)).indices
        stays = torch.zeros(len(self._keys), dtype=torch.bool)
        stays[kept[kept < len(stays)]] = True
        arrived = kept[kept >= len(stays)] - len(stays)
        # In place of those that leave: copies of the whole sample would be most of pass A's work.
        places = (~stays).nonzero().flatten()
        self._sample[places] = values[arrived]
        self._keys[places] = keys[arrived]


def collect_statistics(
    model: nn.Module, inputs: Sequence[SharedInput], batches: Iterable[Batch], seed: int
) -> dict[SharedInput, InputStatistics]:
    """Pass A: one forward pass of `model` over all batches.

    Each batch maps argument names to tensors, as a Hugging Face tokenizer makes them with
    `return_tensors="pt"`; those that the model does not take are left out, and positions
    whose `attention_mask` is 0 are ignored.

    Raises:
        DataError: no batch at all.
        CheckpointError: an activation that is not finite, with the layer's name.
    """
    # By name: an input's sample must not depend on which others are watched, or a mixture of
    # layers would not be what a search has measured.
    statistics = {s: InputStatistics(seed + crc32(s.linears[0].encode())) for s in inputs}

    def record(shared: SharedInput, texts: Texts) -> None:
        statistics[shared].update(texts.rows)
        if not statistics[shared].finite:
            raise CheckpointError(
                f"The input of {shared.linears[0]} is not finite on calibration texts. Check "
                f"the checkpoint: does it hold NaN or infinite weights?"
            )

    if not each_input(model, inputs, batches, record):
        raise DataError(
            "Calibration got no texts. Pass at least one batch; 256 training texts do well."
        )
    return statistics


def extremes(
    statistics: InputStatistics, multiplier: Tensor | None, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Ends [groups] of the smoothed tensor: exact, since smoothing acts on whole channels.

    `multiplier` [in] is positive; 1 group is per tensor, as many as channels per channel.

    Raises:
        ValueError: the channels cannot be divided into so many groups.
    """
    factor = torch.ones_like(statistics.low) if multiplier is None else multiplier
    low, high = statistics.low * factor, statistics.high * factor
    return by_range(low, groups).amin(1), by_range(high, groups).amax(1)


def rotated_extremes(
    model: nn.Module,
    multipliers: Mapping[SharedInput, Tensor | None],
    rotations: Mapping[SharedInput, int],
    batches: Iterable[Batch],
) -> dict[SharedInput, tuple[Tensor, Tensor]]:
    """Ends [1] of the smoothed and rotated tensors, in one forward pass over all batches.

    `rotations` has the block of each input that is rotated; no others are watched.

    Raises:
        DataError: there is no batch.
    """
    observers = {shared: Observer() for shared in rotations}

    def record(shared: SharedInput, texts: Texts) -> None:
        # Text by text, as pass B reads them: a product's last bits depend on its shape.
        factor, rotation = multipliers[shared], rotations[shared]
        observers[shared].update(*(as_read(text, factor, rotation) for text in texts.each))

    if rotations and not each_input(model, list(rotations), batches, record):
        raise DataError(
            "Rotation reads the calibration batches a second time and found none. Pass a list: an "
            "iterator is used up by the first pass."
        )
    seen = {shared: observer.observed() for shared, observer in observers.items()}
    return {shared: (each.low, each.high) for shared, each in seen.items()}


def collect_observed(
    model: nn.Module,
    bounds: Mapping[SharedInput, tuple[Tensor, Tensor]],
    multipliers: Mapping[SharedInput, Tensor | None],
    batches: Iterable[Batch],
    calibrator: Calibrator,
    rotations: Mapping[SharedInput, int] | None = None,
) -> dict[SharedInput, Observed]:
    """Pass B: what `calibrator` needs to know of the inputs, each channel times its multiplier.

    One forward pass serves all inputs, and a calibrator that needs the extremes alone takes
    none. `bounds` are the `extremes` of each input, or the `rotated_extremes` of those in
    `rotations`; their length says how many ranges it has.
    The memory is that of one histogram for each input, whatever the number of texts:
    `calibrators.histogram.default_bins` has the numbers.

    Raises:
        DataError: a pass is needed, and there is no batch.
    """
    if calibrator.needs == "extremes":
        return {shared: Observed(*ends) for shared, ends in bounds.items()}
    observers = {shared: observer_for(calibrator, *ends) for shared, ends in bounds.items()}

    def record(shared: SharedInput, texts: Texts) -> None:
        factor, rotation = multipliers[shared], (rotations or {}).get(shared)
        observers[shared].update(*(as_read(text, factor, rotation) for text in texts.each))

    if not each_input(model, list(bounds), batches, record):
        raise DataError(
            f"The {calibrator.name} calibrator reads the calibration batches a second time and "
            f"found none. Pass a list: an iterator is used up by the first pass."
        )
    return {shared: observer.observed() for shared, observer in observers.items()}


class PassEnded(Exception):  # noqa: N818 - no error
    """Raised by a hook to end a forward pass whose remainder nobody reads."""


def each_input(
    model: nn.Module,
    inputs: Sequence[SharedInput],
    batches: Iterable[Batch],
    sink: Sink,
    *,
    until_last: bool = False,
    arguments: Sequence[str] | None = None,
) -> int:
    """Feed every batch through the model, every input's rows to `sink`; the number of batches.

    Args:
        model: float or quantized.
        inputs: in the order of computation.
        batches: those arguments that the model does not take are left out.
        sink: gets the input and what the batch's texts make of it.
        until_last: leave the layers behind the last input out.
        arguments: that the model takes, where it cannot be described any more.
    """
    device = next(model.parameters()).device
    names = describe(model).arguments if arguments is None else arguments
    was_training, count = model.training, 0
    model.eval()

    def passed_on(shared: SharedInput, texts: Texts) -> None:
        sink(shared, texts)
        if until_last and shared == inputs[-1]:
            raise PassEnded

    try:
        for batch in batches:
            given = {name: batch[name].to(device) for name in names if name in batch}
            with (
                torch.inference_mode(),
                suppress(PassEnded),
                _hooks(model, inputs, given, passed_on),
            ):
                model(**given)
            count += 1
    finally:
        model.train(was_training)
    return count


@contextmanager
def _hooks(
    model: nn.Module, inputs: Sequence[SharedInput], arguments: Batch, sink: Sink
) -> Iterator[None]:
    """Hand each shared input, without padding, to `sink`."""
    mask = arguments.get("attention_mask", torch.ones_like(arguments["input_ids"]))
    keep = mask.bool().cpu()
    lengths, padded = keep.sum(1).tolist(), not bool(keep.all())

    def hook_for(shared: SharedInput) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, positional: tuple[Any, ...]) -> None:
            values = positional[0].detach().float().cpu()
            if values.dim() == 2:  # the pooler and the head read one vector per text
                sink(shared, Texts(values, [1] * len(values)))
            else:
                sink(shared, Texts(values[keep] if padded else values.flatten(0, 1), lengths))

        return hook

    handles = [
        model.get_submodule(shared.linears[0]).register_forward_pre_hook(hook_for(shared))
        for shared in inputs
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
