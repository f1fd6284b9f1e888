"""What a step needs of all modules alike, made at once when the first of them asks for it.

On a GPU alone, where starting a hundred kernels takes longer than they run.
"""

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from quantkit.kernels.fake_weights import fake_quantize_weights
from quantkit.numerics import Grid
from quantkit.qat.chunks import in_chunks
from quantkit.qat.inputs import product_type

__all__ = ["RangesTogether", "WeightsTogether"]

M = TypeVar("M")
V = TypeVar("V")


class _Matrix(Protocol):
    """A latent weight [out, in], its scales [out, 1] and multipliers [out, groups]."""

    weight: nn.Parameter
    base_scale: Tensor
    log_scale: nn.Parameter | None
    multipliers: Tensor | None
    grid: Grid


class _Range(Protocol):
    """A scale and a zero point, both scalars, as `FakeQuantInput` has them."""

    base_scale: Tensor
    base_zero: Tensor
    log_scale: nn.Parameter | None
    offset: nn.Parameter | None
    grid: Grid


class _Together(Generic[M, V]):
    """Makes all values when the first is asked for, and gives each away once.

    So a step makes them once. What a step that ended early has left is not taken for the next
    one's, as the parameters have changed since.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[V, object]] = {}

    def __getstate__(self) -> dict[str, object]:
        # What has not been given away belongs to a step, and a copy is of the modules alone.
        return {**vars(self), "_made": {}}

    def take(self, module: M, x: Tensor) -> V | None:
        """A module's value, for a product of `x`; None where each module makes its own."""
        if in_chunks(x) or not torch.is_grad_enabled() or _traced_or_computed_twice():
            return None
        kind = product_type(x)
        found = self._made.pop(id(module), None)
        if found is None or found[1] != (kind, *self._state(module)):
            self._made = {
                id(each): (value, (kind, *self._state(each))) for each, value in self._all(kind)
            }
            found = self._made.pop(id(module))
        return found[0]

    def _all(self, kind: torch.dtype) -> Iterator[tuple[M, V]]:
        raise NotImplementedError

    def _state(self, module: M) -> tuple[int, ...]:
        """What changes with each step of an optimizer."""
        raise NotImplementedError


class WeightsTogether(_Together[_Matrix, Tensor]):
    """The weights of Linears on their grids.

    Args:
        matrices: of one model; several may hold the same weight, and then all else is the same.
    """

    def __init__(self, matrices: Iterable[_Matrix]) -> None:
        super().__init__()
        self._alike: dict[object, dict[int, list[_Matrix]]] = {}
        for each in matrices:
            groups = None if each.multipliers is None else each.multipliers.shape[1]
            key = each.weight.shape[1], each.grid, groups
            self._alike.setdefault(key, {}).setdefault(id(each.weight), []).append(each)

    def _all(self, kind: torch.dtype) -> Iterator[tuple[_Matrix, Tensor]]:
        for alike in self._alike.values():
            firsts = [matrices[0] for matrices in alike.values()]
            scales = torch.cat([each.base_scale for each in firsts])
            logarithms = [each.log_scale for each in firsts if each.log_scale is not None]
            if logarithms:
                scales = scales * torch.cat([*logarithms]).exp()
            multipliers = [each.multipliers for each in firsts if each.multipliers is not None]
            values = fake_quantize_weights(
                [each.weight for each in firsts],
                scales.flatten(),
                torch.cat(multipliers) if multipliers else None,
                firsts[0].grid,
                kind,
            )
            for made, matrices in zip(values, alike.values(), strict=True):
                yield from ((each, made) for each in matrices)

    def _state(self, module: _Matrix) -> tuple[int, ...]:
        return _versions(module.weight, module.log_scale)


class RangesTogether(_Together[_Range, tuple[Tensor, Tensor]]):
    """Scales and zero points of learnt inputs.

    Args:
        ranges: of one model, all learnt, and all with an offset or none.
    """

    def __init__(self, ranges: Iterable[_Range]) -> None:
        super().__init__()
        self._ranges = tuple(ranges)

    def _all(self, kind: torch.dtype) -> Iterator[tuple[_Range, tuple[Tensor, Tensor]]]:
        del kind
        scales = torch.stack([each.base_scale for each in self._ranges])
        logarithms = [each.log_scale for each in self._ranges if each.log_scale is not None]
        scales = scales * torch.stack([*logarithms]).exp()
        zeros = torch.stack([each.base_zero for each in self._ranges])
        offsets: list[Tensor] = [each.offset for each in self._ranges if each.offset is not None]
        if offsets:
            spans = [float(each.grid.qmax - each.grid.qmin) for each in self._ranges]
            zeros = zeros + torch.stack(offsets) * zeros.new_tensor(spans)
        return zip(self._ranges, zip(scales.unbind(), zeros.unbind(), strict=True), strict=True)

    def _state(self, module: _Range) -> tuple[int, ...]:
        return _versions(module.log_scale, module.offset)


def _traced_or_computed_twice() -> bool:
    """Whether torch.compile or a checkpoint is at work, to which each module is one of its own.

    A checkpoint keeps nothing, by hooks on what is kept, and computes again in the backward pass.
    """
    autograd = torch._C._autograd
    return (
        torch.compiler.is_compiling()
        or autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._current_graph_task_id() != -1
    )


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors if tensor is not None)
