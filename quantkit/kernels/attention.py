"""Attention over texts of different lengths that lie one behind the other, without padding.

    context = softmax(q k^T / sqrt(d)) v      of each text and each head apart

Text b has the tokens starts[b] .. starts[b + 1] - 1 of [tokens, 3 * hidden]. The softmax is made in
one pass over the keys with a running maximum (Milakov and Gimelshein 2018; FlashAttention, Dao et
al. 2022). The context leaves the kernel as the codes that the output projection reads.
"""

from itertools import pairwise

import torch
from torch import Tensor

from quantkit.kernels.arithmetic import code_of
from quantkit.kernels.inputs import Codes, Reads, apply
from quantkit.kernels.launch import blocks, jit, power_of_two, tl, uses_triton

__all__ = ["attention", "attention_reference"]

BLOCK = 64  # queries of a program, and keys at a time
SINGLE_BLOCK = 32  # in float32, for which 64 are more than the registers hold


def attention(
    merged: Tensor, starts: Tensor, longest: int, heads: int, reads: Reads
) -> Tensor | Codes:
    """Context of every token: [tokens, hidden] in the dtype of `merged`, or its codes.

    Args:
        merged: query, key and value side by side, [tokens, 3 * hidden].
        starts: int32 [texts + 1], from 0; tokens behind the last are no text's.
        longest: no text has more tokens; decides how many programs are started.
        heads: that `hidden` is cut into.
        reads: what the output projection reads.
    """
    if not uses_triton(merged):
        return attention_reference(merged, starts, longest, heads, reads)
    tokens, hidden = merged.shape[0], merged.shape[1] // 3
    fused = reads.kind == "static"  # a scale per token needs all heads of a token
    codes = reads.empty(tokens, hidden, merged.device) if fused else None
    # Tokens of no text are written by nobody.
    result = codes.values if codes is not None else merged.new_empty((tokens, hidden))
    width = hidden // heads
    low, high = reads.ends
    block = SINGLE_BLOCK if merged.dtype == torch.float32 else BLOCK
    grid = blocks(longest, block), heads, len(starts) - 1
    _attention[grid](
        merged,
        starts,
        result,
        merged if reads.scale is None else reads.scale,
        merged if reads.offset is None else reads.offset,
        merged if reads.multiplier is None else reads.multiplier,
        hidden,
        width,
        width**-0.5 * 1.4426950408889634,
        CODES=fused,
        MULTIPLIED=reads.multiplier is not None,
        LOW=low,
        HIGH=high,
        WIDTH=power_of_two(width),
        BLOCK_M=block,
        BLOCK_N=block,
        num_warps=4,
        num_stages=2,
    )
    if codes is not None:
        return codes
    if reads.kind == "float":
        return result
    return apply(result, "none", reads)[1] or result


def attention_reference(
    merged: Tensor, starts: Tensor, longest: int, heads: int, reads: Reads
) -> Tensor | Codes:
    """`attention` in plain torch, one text after the other; tokens of no text give 0."""
    del longest
    tokens, hidden = merged.shape[0], merged.shape[1] // 3
    context = torch.zeros((tokens, hidden), dtype=torch.float32, device=merged.device)
    for first, last in pairwise(starts.tolist()):
        if first == last:
            continue
        parts = merged[first:last].float().view(last - first, 3, heads, hidden // heads)
        query, key, value = parts.permute(1, 2, 0, 3)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        context[first:last] = found.transpose(0, 1).reshape(last - first, hidden)
    return context.to(merged.dtype) if reads.kind == "float" else reads.codes(context)


@jit
def _attention(
    merged,
    starts,
    result,
    scale,
    offset,
    multiplier,
    hidden,
    width,
    factor,
    CODES: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some queries of one head of one text. `factor` is log2(e) / sqrt(d): powers are of 2."""
    head, text = tl.program_id(1), tl.program_id(2)
    first = tl.load(starts + text).to(tl.int64)
    length = tl.load(starts + text + 1).to(tl.int64) - first
    query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, WIDTH)
    real = channel < width
    if tl.program_id(0) * BLOCK_M < length:
        stride = 3 * hidden
        base = merged + first * stride + head * width
        known = (query < length)[:, None] & real[None, :]
        q = tl.load(base + query[:, None] * stride + channel[None, :], mask=known, other=0.0)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        weight = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M, WIDTH), tl.float32)
        for start in range(0, length, BLOCK_N):
            key = start + tl.arange(0, BLOCK_N)
            inside = (key < length)[:, None] & real[None, :]
            place = base + hidden + key[:, None] * stride + channel[None, :]
            k = tl.load(place, mask=inside, other=0.0)
            v = tl.load(place + hidden, mask=inside, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
            scores = tl.where((key < length)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            shares = tl.exp2(scores - higher[:, None])
            fading = tl.exp2(highest - higher)
            weight = weight * fading + tl.sum(shares, axis=1)
            total = total * fading[:, None]
            total = tl.dot(shares.to(v.dtype), v, total, input_precision="ieee")
            highest = higher
        value = total / weight[:, None]
        column = head * width + channel
        if CODES:
            if MULTIPLIED:
                value = value * tl.load(multiplier + column, mask=real, other=0.0)[None, :]
            value = code_of(value, tl.load(scale), tl.load(offset).to(tl.float32), LOW, HIGH)
        place = result + (first + query[:, None]) * hidden + column[None, :]
        tl.store(place, value.to(result.dtype.element_ty), mask=known)
