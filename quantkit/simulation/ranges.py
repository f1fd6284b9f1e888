"""Ranges of tapped tensors: the passes over the calibration texts, in bounded memory.

The first pass finds extremes, per channel where channels are to be grouped. A second one serves
calibrators that need more: histograms and moving averages over the ranges that are known by then.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantkit.calibration import Batch
from quantkit.calibrators import Observed, Observer, observer_for
from quantkit.calibrators.histogram import by_range
from quantkit.errors import CheckpointError, DataError
from quantkit.recipe import Activations
from quantkit.simulation.taps import Tap

__all__ = ["Watched", "by_text", "watch"]

Sink = Callable[[Tap, list[Tensor]], None]  # one tensor per text


@dataclass(frozen=True)
class Watched:
    """What was seen of a tensor.

    observed   of its n ranges
    order      int64 [channels], where channels are grouped: a permutation of them, of which the
               first n-th has the first range, and so on; None: one range for all
    """

    observed: Observed
    order: Tensor | None = None


def watch(
    model: nn.Module,
    arguments: Sequence[str],
    taps: Sequence[Tap],
    batches: Sequence[Batch],
    slot: Activations,
) -> dict[Tap, Watched]:
    """Run the texts and see what the slot's calibrator needs of every tap; padding is ignored.

    Args:
        model: with taps that still pass everything on.
        arguments: of its forward.
        taps: of the model.
        batches: calibration texts, read once or twice.
        slot: calibrator and groups.

    Raises:
        DataError: no batch.
        CheckpointError: a value that is not finite, or a tap that no tensor flows through.
    """
    bounds = _extremes(model, arguments, taps, batches, slot)
    orders = {tap: _order(low, high, slot) for tap, (low, high) in bounds.items() if len(low) > 1}
    shared = {tap: _shared(ends, orders.get(tap), slot) for tap, ends in bounds.items()}
    if slot.calibrator.needs == "extremes":
        return {tap: Watched(Observed(*shared[tap]), orders.get(tap)) for tap in taps}
    observers = {tap: observer_for(slot.calibrator, *ends) for tap, ends in shared.items()}

    def record(tap: Tap, texts: list[Tensor]) -> None:
        order = orders.get(tap)
        observers[tap].update(*(texts if order is None else (text[..., order] for text in texts)))

    _each_tensor(model, arguments, taps, batches, record)
    return {tap: Watched(observers[tap].observed(), orders.get(tap)) for tap in taps}


def _extremes(
    model: nn.Module,
    arguments: Sequence[str],
    taps: Sequence[Tap],
    batches: Sequence[Batch],
    slot: Activations,
) -> dict[Tap, tuple[Tensor, Tensor]]:
    """Ends of every tap: [channels] where these are to be grouped, else [1]."""
    observers: dict[Tap, Observer] = {}

    def record(tap: Tap, texts: list[Tensor]) -> None:
        grouped = tap.residual and slot.groups is not None
        observer = observers.setdefault(tap, Observer(texts[0].shape[-1] if grouped else 1))
        try:
            observer.update(*texts)
        except ValueError:
            raise CheckpointError(
                f"The tensor at {tap.name} is not finite on calibration texts. Check the "
                f"checkpoint: does it hold NaN or infinite weights?"
            ) from None

    if not _each_tensor(model, arguments, taps, batches, record):
        raise DataError(
            "Calibration got no texts. Pass at least one batch; 256 training texts do well."
        )
    for tap in taps:
        if tap not in observers:
            raise CheckpointError(
                f"No tensor flows through {tap.name}: this version of transformers computes it "
                f"elsewhere. Full quantization needs transformers 5: pip install -U transformers"
            )
    found = {tap: observers[tap].observed() for tap in taps}
    return {tap: (seen.low, seen.high) for tap, seen in found.items()}


def _order(low: Tensor, high: Tensor, slot: Activations) -> Tensor:
    """Channels in the order of their range, or as they are: int64 [channels]."""
    return (high - low).argsort(stable=True) if slot.ordered else torch.arange(len(low))


def _shared(
    ends: tuple[Tensor, Tensor], order: Tensor | None, slot: Activations
) -> tuple[Tensor, Tensor]:
    """Ends of the groups [groups], from those of the channels."""
    if order is None or slot.groups is None:
        return ends
    low, high = (by_range(end[order], slot.groups) for end in ends)
    return low.amin(1), high.amax(1)


def _each_tensor(
    model: nn.Module,
    arguments: Sequence[str],
    taps: Sequence[Tap],
    batches: Sequence[Batch],
    sink: Sink,
) -> int:
    """Feed every batch through the model, what flows through its taps to `sink`."""
    device = next(model.parameters()).device
    for batch in batches:
        given = {name: batch[name].to(device) for name in arguments if name in batch}
        with torch.inference_mode(), _hooks(model, taps, given, sink):
            model(**given)
    return len(batches)


@contextmanager
def _hooks(
    model: nn.Module, taps: Sequence[Tap], given: Mapping[str, Tensor], sink: Sink
) -> Iterator[None]:
    mask = given.get("attention_mask")

    def hook_for(tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, positional: sink(tap, by_text(positional[0], mask))

    handles = [
        model.get_submodule(tap.name).register_forward_pre_hook(hook_for(tap)) for tap in taps
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_text(values: Tensor, mask: Tensor | None) -> list[Tensor]:
    """A tensor's values, apart for every text and without padding; float32 on the CPU.

    Args:
        values: [texts, channels], [texts, tokens, channels] or, of attention,
            [texts, heads, tokens, tokens].
        mask: [texts, tokens], 0 where padding is; None: no padding.

    Returns:
        [1, channels], [kept, channels] or [heads, kept, kept] of every text.
    """
    values = values.detach().float().cpu()
    if values.dim() == 2:
        return [row[None] for row in values]
    if mask is None:
        return list(values)
    kept = mask.bool().cpu()
    if values.dim() == 3:
        return [text[keep] for text, keep in zip(values, kept, strict=True)]
    return [text[:, keep][:, :, keep] for text, keep in zip(values, kept, strict=True)]
