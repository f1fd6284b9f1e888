"""The Hadamard rotation: a wide channel's share goes to all channels of its block.

Sylvester's matrices, scaled to be orthogonal:

    H_1 = [1],   H_2b = [[H_b, H_b], [H_b, -H_b]] / sqrt(2),   H_b H_b = I, H_b symmetric

(x H) (W H)ᵀ = x Wᵀ: where inputs and weights turn together, the product stays as it is. A value of
100 beside zeros becomes 100 / sqrt(b) in each channel of its block, so the range of a grid that
has to cover it shrinks by up to sqrt(b). Before 4-bit grids as in QuaRot (Ashkboos et al. 2024,
arXiv 2404.00456, section 4), but computed where inputs are read: the LayerNorm's output feeds a
residual sum too, so nothing can be moved into the weights before it.

A width is seldom a power of two (384 = 3 * 128, 768 = 3 * 256), so x is turned block by block: the
matrix is block-diagonal. A product with it costs b multiplications a channel, and what a
larger block spreads further, it also pays for: blocks end at LARGEST_BLOCK.
"""

import functools
import math

import torch
from torch import Tensor

__all__ = ["LARGEST_BLOCK", "as_read", "block_size", "hadamard", "rotated"]

LARGEST_BLOCK = 128


def block_size(width: int, largest: int = LARGEST_BLOCK) -> int:
    """The largest power of two, at most `largest`, that divides `width`.

    384, 768, 1536 and 3072 have 128; 48 has 16, 96 has 32, and an odd width 1.
    """
    return min(width & -width, largest)


def hadamard(block: int) -> Tensor:
    """H_b [b, b], float32: entries are 1 / sqrt(b) and -1 / sqrt(b).

    Of block 2, [[1, 1], [1, -1]] / sqrt(2).

    Raises:
        ValueError: `block` is no power of two.
    """
    if block < 1 or block & (block - 1):
        raise ValueError(f"a Hadamard block is a power of two, not {block}")
    signs = torch.ones(1, 1, device="cpu")
    while len(signs) < block:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs / math.sqrt(block)


def rotated(x: Tensor, block: int | None) -> Tensor:
    """`x` [..., in] times the block-diagonal matrix of H_b, in the dtype of `x`; None: `x` itself.

    With block 2, (3, 1, 0, 2) becomes (4, 2, 2, -2) / sqrt(2). Twice is as good as not at all.

    Raises:
        RuntimeError: `block` does not divide the width.
    """
    if block is None:
        return x
    # Autocast would round what is about to be quantized.
    with torch.autocast(x.device.type, enabled=False):
        blocks = x.reshape(*x.shape[:-1], -1, block)
        return (blocks @ _matrix(block, x)).flatten(-2)


def as_read(x: Tensor, multiplier: Tensor | None, rotation: int | None) -> Tensor:
    """An input [..., in] as it is put on its grid: (x m) H, each of them if there is one.

    Args:
        x: as the layer before made it.
        multiplier: m [in], the reciprocal of a smoothing vector.
        rotation: the block of H.
    """
    return rotated(x if multiplier is None else x * multiplier, rotation)


def _matrix(block: int, like: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return hadamard(block).to(like.device, like.dtype)
    return _kept(block, like.device, like.dtype)


@functools.cache
def _kept(block: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # whoever asks first: it is for training too
        return hadamard(block).to(device, dtype)
