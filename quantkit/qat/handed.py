"""What one module made of a tensor, handed on to those that read the same tensor."""

from typing import Any, Protocol

import torch
from torch import Tensor

from quantkit.qat.inputs import Read

__all__ = ["Handed"]


class _Reader(Protocol):
    def fake(self, x: Tensor) -> Read:
        """`x` on the reader's grid."""
        ...


class Handed:
    """What one reader made of a tensor, handed on to the Linears that read the same tensor.

    The reader's owner makes it anew each time, so nothing stale is ever handed on, and it is let
    go when every other Linear has had it. Under torch.compile, which finds common computations
    by itself, each Linear makes its own.
    """

    def __init__(self) -> None:
        self.others = 0  # Linears besides the owner
        self._left = 0
        self._of: tuple[Tensor, Read] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handed":
        copied = Handed()
        copied.others = self.others
        memo[id(self)] = copied
        return copied

    def read(self, reader: _Reader, x: Tensor, *, owner: bool) -> Read:
        """`reader.fake(x)`."""
        if torch.compiler.is_compiling() or not self.others:
            return reader.fake(x)
        if not owner and self._of is not None and self._of[0] is x:
            found = self._of[1]
            self._left -= 1
            if not self._left:
                self._of = None
            return found
        made = reader.fake(x)
        if owner:
            self._of, self._left = (x, made), self.others
        return made
