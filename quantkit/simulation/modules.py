"""Modules of a simulated model, and the attention that finds its quantizers."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from quantkit.numerics import Grid, fake_quantize

__all__ = ["ATTENTION", "QUANTIZERS", "ChannelMultiplier", "FakeQuantizer", "attention_on_grids"]

ATTENTION = "quantkit-full"  # its name among transformers' attention functions
QUANTIZERS = "quantizers"  # of an attention module: what holds its two quantizers


class FakeQuantizer(nn.Module):
    """Moves a tensor onto its grid: values out, each of them scale times an integer.

    Args:
        scale: float32, [1] or one per channel [channels].
        zero_point: of the grid's dtype, of the same shape.
        grid: the integers.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """The nearest point of the grid to every value of `x` [..., channels]."""
        return fake_quantize(x, self.scale, self.zero_point, self.grid)

    def extra_repr(self) -> str:
        """Number of scales and of codes, as `print(model)` shows them."""
        return f"scales={len(self.scale)}, codes={self.grid.qmax - self.grid.qmin + 1}"


class ChannelMultiplier(nn.Module):
    """Multiplies channels: the smoothing of a Linear's input.

    Args:
        multiplier: float32 [channels].
    """

    multiplier: Tensor

    def __init__(self, multiplier: Tensor) -> None:
        super().__init__()
        self.register_buffer("multiplier", multiplier)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., channels] times the multiplier."""
        return x * self.multiplier


def attention_on_grids(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """Attention with scores and probabilities on grids: transformers' attention interface.

    Scores are quantized before the mask is added: the lowest float that stands for "not this
    token" would take the whole range. A masked token's probability is 0, which every grid has.

    Args:
        module: the attention module; its submodule `quantizers` has `scores` and `probabilities`.
        query: [texts, heads, tokens, width], as are `key` and `value`.
        key: likewise.
        value: likewise.
        attention_mask: added to the scores [texts, 1, tokens, tokens]; None masks nothing.
        scaling: of the scores; default: 1 / sqrt(width).
        dropout: of the probabilities, in training.

    Returns:
        The context [texts, tokens, heads, width], and the probabilities
        [texts, heads, tokens, tokens].
    """
    quantizers: Any = getattr(module, QUANTIZERS)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = quantizers["scores"](query @ key.transpose(2, 3) * scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = quantizers["probabilities"](scores.softmax(-1))
    probabilities = nn.functional.dropout(probabilities, dropout, module.training)
    context = torch.matmul(probabilities, value)
    return context.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ATTENTION, attention_on_grids)
AttentionMaskInterface.register(ATTENTION, eager_mask)
