"""Where training starts: float weights inside the rounding cells of the codes that PTQ chose."""

from torch import Tensor

__all__ = ["INSIDE", "into_cells"]

# Of a cell's half width 0.5: rounding errors of a ratio up to 127 are below 1e-4.
INSIDE = 0.5 - 2.0**-10


def into_cells(weight: Tensor, codes: Tensor, step: Tensor) -> Tensor:
    """The weights nearest to `weight` whose codes are `codes`.

    GPTQ chooses codes that are not nearest to the weights; a weight is moved just inside the
    cell of its code, so that training begins with these codes. That holds for the ends of the
    grid too: a weight far outside would get no gradient. With a step of 1, the weights 0.2 and
    0.9 with the codes 1 and 1 become 0.501 and 0.9.

    Args:
        weight: float32 [rows, columns].
        codes: int8 [rows, columns].
        step: float32, broadcasts against both: scale times multiplier.
    """
    centre = codes.to(weight.dtype)
    return weight.clamp((centre - INSIDE) * step, (centre + INSIDE) * step)
