"""A batch without padding: all tokens one behind the other, and where each text begins.

CUDA graphs replay fixed sizes, so every size is rounded up to one of few: what is added belongs
to no text, and is computed in vain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Packed", "Shape", "pack", "rounded"]

LEAST_TOKENS, LONGEST_STEP = 16, 64


@dataclass(frozen=True)
class Shape:
    """Sizes that a computation is made for."""

    tokens: int
    texts: int
    longest: int  # tokens of a text, at most

    @property
    def values(self) -> int:
        """Integers that describe such a batch: three of each token, and the starts."""
        return 3 * self.tokens + self.texts + 1


@dataclass(frozen=True)
class Packed:
    """What the model reads, as one int32 vector, so that it is copied at once.

    ids, types and positions of every token, then the starts: text b has the tokens
    starts[b] .. starts[b + 1] - 1.
    """

    values: Tensor  # int32 [shape.values]
    shape: Shape

    @property
    def ids(self) -> Tensor:
        """Int32 [tokens]."""
        return self.values[: self.shape.tokens]

    @property
    def types(self) -> Tensor:
        """Int32 [tokens]."""
        return self.values[self.shape.tokens : 2 * self.shape.tokens]

    @property
    def positions(self) -> Tensor:
        """Int32 [tokens]: rows of the position table."""
        return self.values[2 * self.shape.tokens : 3 * self.shape.tokens]

    @property
    def starts(self) -> Tensor:
        """Int32 [texts + 1]."""
        return self.values[3 * self.shape.tokens :]


def pack(arrays: Mapping[str, NDArray[np.int64]], padding: int | None, *, exact: bool) -> Packed:
    """The real tokens of padded arrays [batch, length].

    Args:
        arrays: `input_ids`, `attention_mask`, `token_type_ids`.
        padding: the id that RoBERTa's positions leave out, see `EmbeddingPlan`; or None.
        exact: keep the sizes as they are, instead of rounding them up.
    """
    mask = arrays["attention_mask"].astype(bool)
    ids = arrays["input_ids"]
    lengths = mask.sum(1)
    if padding is None:
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    else:
        counted = (ids != padding).astype(np.int64)
        positions = counted.cumsum(1) * counted + padding
    shape = Shape(int(lengths.sum()), len(ids), int(lengths.max(initial=1)))
    room = shape if exact else rounded(shape)
    values = np.zeros(room.values, np.int32)
    for at, rows in enumerate((ids, arrays["token_type_ids"], positions)):
        values[at * room.tokens :][: shape.tokens] = rows[mask]
    starts = values[3 * room.tokens :]
    starts[1 : shape.texts + 1] = lengths.cumsum()
    starts[shape.texts + 1 :] = shape.tokens  # texts without tokens
    return Packed(torch.from_numpy(values), room)


def rounded(shape: Shape) -> Shape:
    """The sizes of the graph that serves `shape`.

    Tokens go up to a multiple of an eighth of their power of two, so that at most a ninth of the
    work is in vain from 128 tokens on: 100 become 112, 1,025 become 1,152. Texts go up to a power
    of two.
    """
    step = max(LEAST_TOKENS, (1 << (shape.tokens.bit_length() - 1)) // 8) if shape.tokens else 1
    return Shape(
        max(LEAST_TOKENS, -(-shape.tokens // step) * step),
        1 << (shape.texts - 1).bit_length(),
        -(-shape.longest // LONGEST_STEP) * LONGEST_STEP,
    )
