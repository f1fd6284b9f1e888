"""`numerics.py` once more, in Triton: codes and activation functions inside of kernels.

The interpreter tests hold these against `numerics` bit for bit.
"""

from quantkit.kernels.launch import jit, tl

__all__ = ["activate", "code_of", "round_half_even", "write_codes"]


@jit
def round_half_even(x):
    """The nearest integer of |x| < 2**22, halves to the even one.

    1.5 * 2**23 leaves a float32 no bits behind the point; the addition itself rounds.
    """
    return (x + 12582912.0) - 12582912.0


@jit
def code_of(x, scale, offset, LOW: tl.constexpr, HIGH: tl.constexpr):
    """clamp(round_half_even(x / scale) + offset, LOW, HIGH), as float32.

    `div_rn` is IEEE's division; `/` is allowed to be off by two last places. What lies
    beyond 1024 is clamped anyway, since offsets and codes are below 256.
    """
    ratio = tl.div_rn(x, scale)
    ratio = tl.minimum(tl.maximum(ratio, -1024.0), 1024.0)
    return tl.minimum(tl.maximum(round_half_even(ratio) + offset, LOW), HIGH)


@jit
def activate(x, FUNCTION: tl.constexpr):
    """The activation function of a float32 `x`; "none" leaves it as it is."""
    if FUNCTION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FUNCTION == "gelu_tanh":
        # 0.5 (1 + tanh u) = sigmoid(2 u)
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * tl.sigmoid(2.0 * inner)
    elif FUNCTION == "relu":
        x = tl.maximum(x, 0.0)
    return x


@jit
def write_codes(
    x,
    row,
    columns,
    width,
    codes,
    token_scale,
    scale,
    offset,
    multiplier,
    KIND: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
):
    """The codes of one row `x` (float32, 0 outside of it), as `inputs.Reads` describes them."""
    inside = columns < width
    if MULTIPLIED:
        x = x * tl.load(multiplier + columns, mask=inside, other=0.0)
    place = codes + row * width + columns
    if KIND == "static":
        code = code_of(x, tl.load(scale), tl.load(offset).to(tl.float32), LOW, HIGH)
        tl.store(place, code.to(tl.int8), mask=inside)
    else:
        bound = tl.max(tl.abs(x), axis=0)
        widest = tl.div_rn(bound, HIGH * 1.0)
        widest = tl.where(widest < 1.1754943508222875e-38, 1.0, widest)
        tl.store(token_scale + row, widest)
        if KIND == "token":
            tl.store(place, code_of(x, widest, 0.0, LOW, HIGH).to(tl.int8), mask=inside)
        else:
            ratio = tl.minimum(tl.maximum(tl.div_rn(x, widest), LOW), HIGH)
            tl.store(place, ratio.to(tl.float8e4nv), mask=inside)
