"""Running only the layers behind a change: those before it hand out what they computed once.

A model of which one module is quantized computes in the layers before that module what the
float model computes. With 12 layers, doing this once instead of once for every module saves
half of the work of measuring all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from quantkit.batching import Encoded, collate, ordered_batches
from quantkit.encoder import EncoderPlan, LayerPlan
from quantkit.placement import swap
from quantkit.units import common_start

__all__ = ["Replay"]


class _Stop(Exception):  # noqa: N818 - no error
    """Ends a forward pass whose remainder nobody reads."""


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


class Replay:
    """A float model whose first layers can be replaced by what they compute on given rows.

    In memory is one layer's output on all rows. Layers are to be asked for in ascending order:
    each is recorded from the one before.

    Args:
        model: float; changed inside of `up_to` alone.
        encoder: its plan.
        rows: what `prediction.predict` will run over, in this order, each time.
        pad_token_id: fills the shorter rows of a batch.
        batch_size: as `predict` will have it.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: EncoderPlan,
        rows: Sequence[Encoded],
        *,
        pad_token_id: int,
        batch_size: int = 32,
    ) -> None:
        self._model = model
        self._names = [_module_of(layer) for layer in encoder.layers]
        self._arguments = encoder.arguments
        self._rows = rows
        self._padding = pad_token_id
        self._batch_size = batch_size
        self._done = 0  # layers that `_results` stand for
        self._results: list[object] = []

    @contextmanager
    def up_to(self, layer: int) -> Iterator[None]:
        """Layers before number `layer` return what the float model's return.

        The block has to run the model over all rows, any number of times.

        Raises:
            ValueError: a layer before an earlier call's.
        """
        if layer < self._done:
            raise ValueError(f"layer {layer} was left behind: {self._done} are recorded")
        while self._done < layer:
            with self._replaced():
                results = self._record(self._names[self._done])
            self._results, self._done = results, self._done + 1
        with self._replaced():
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

    def _record(self, name: str) -> list[object]:
        """What the module of a name returns, batch by batch."""
        results: list[object] = []

        def keep(_module: nn.Module, _arguments: object, result: object) -> None:
            results.append(result)
            raise _Stop

        handle = self._model.get_submodule(name).register_forward_hook(keep)
        try:
            self._run()
        finally:
            handle.remove()
        return results

    @torch.no_grad()
    def _run(self) -> None:
        device = next(self._model.parameters()).device
        for rows in self._rows:
            for indices in ordered_batches(rows.lengths(), self._batch_size):
                batch = collate(rows, indices, self._padding)
                arguments = {n: batch[n].to(device) for n in self._arguments if n in batch}
                _until_stopped(self._model, arguments)


def _until_stopped(model: Callable[..., object], arguments: dict[str, Any]) -> None:
    try:
        model(**arguments)
    except _Stop:
        return


def _module_of(layer: LayerPlan) -> str:
    """The module that holds all of a layer: what its names have in common."""
    names = [name for shared in layer.inputs for name in shared.linears]
    return common_start([*names, layer.activation, layer.output_norm]).rpartition(".")[0]
