"""Running only the layers behind a point: those before it hand out what they computed once.

Where a pass is made for every layer or every few of them, and the layers before it compute the
same each time, doing that once saves half of the work: a model of which one module is quantized
computes before that module what the float model computes, and so does the float model itself
while the moments of its later layers are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.calibration import PassEnded
from quantkit.encoder import EncoderPlan
from quantkit.placement import swap

__all__ = ["Replay"]


class _Recorded(nn.Module):
    """Stands for a layer: returns recorded results, one per call, over and over."""

    def __init__(self, results: Sequence[object]) -> None:
        super().__init__()
        self._results = results
        self._at = 0

    def forward(self, *_: Any, **__: Any) -> object:  # noqa: ANN401
        """The next result, whatever the arguments."""
        result = self._results[self._at % len(self._results)]
        self._at += 1
        return result


class _Recorder:
    """A hook that records what a layer returns, each in the place of what an earlier one did."""

    def __init__(self, results: list[object]) -> None:
        self._results = results
        self._at = 0

    def __call__(self, _module: nn.Module, _arguments: object, result: object) -> None:
        self._results[self._at : self._at + 1] = [result]
        self._at += 1


class Replay:
    """A float model whose first layers can be replaced by what they compute on given batches.

    In memory is one layer's output on all batches, once: 100 MB for 32,768 tokens of BERT-base.
    Layers are to be asked for in ascending order: each is recorded from the one before.

    Args:
        model: float; changed inside of `up_to` alone.
        encoder: its plan.
        batches: makes all that will be run, in this order, each time.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: EncoderPlan,
        batches: Callable[[], Iterable[Mapping[str, Tensor]]],
    ) -> None:
        self._model = model
        self._names = [layer.module for layer in encoder.layers]
        self._arguments = encoder.arguments
        self._batches = batches
        self._done = 0  # layers that `_results` stand for
        self._results: list[object] = []

    @contextmanager
    def up_to(self, layer: int, following: int | None = None) -> Iterator[None]:
        """Layers before number `layer` return what the float model's return.

        The block has to run the model over all batches, any number of times. With `following`,
        the layer that the next call will ask for, it has to run the float model, once and at
        least so far: what it computes is recorded, and not computed again for that call.

        Raises:
            ValueError: a layer before an earlier call's.
        """
        if layer < self._done:
            raise ValueError(f"layer {layer} was left behind: {self._done} are recorded")
        while self._done < layer:
            with self._replaced(), self._recording(self._done + 1):
                self._run(self._names[self._done])
        with self._replaced(), self._recording(following or layer):
            yield

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        names = self._names[: self._done]
        originals = {name: self._model.get_submodule(name) for name in names}
        swap(self._model, {name: _Recorded(self._results) for name in names})
        try:
            yield
        finally:
            swap(self._model, originals)

    @contextmanager
    def _recording(self, upto: int) -> Iterator[None]:
        """Record so many layers from what the block runs."""
        if upto <= self._done:
            yield
            return
        last = self._model.get_submodule(self._names[upto - 1])
        handle = last.register_forward_hook(_Recorder(self._results))
        try:
            yield
        except BaseException:
            self._results, self._done = [], 0  # some batches may be those of the later layer
            raise
        finally:
            handle.remove()
        self._done = upto

    @torch.no_grad()
    def _run(self, last: str) -> None:
        """All batches through the layer of that name, and no further."""

        def stop(*_: object) -> None:
            raise PassEnded

        device = next(self._model.parameters()).device
        handle = self._model.get_submodule(last).register_forward_hook(stop)
        try:
            for batch in self._batches():
                arguments = {n: batch[n].to(device) for n in self._arguments if n in batch}
                with suppress(PassEnded):
                    self._model(**arguments)
        finally:
            handle.remove()
