"""Dynamic ranges: every token has its own, so nothing is calibrated."""

from torch import Tensor

__all__ = ["per_token_range"]


def per_token_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of each row of `x` [..., in], for a scale per token: two tensors [..., 1].

    `scale_and_zero_point` widens them to contain 0. A massive activation coarsens the step of its
    own token only. The row -1, 0, 3 gives -1 and 3.
    """
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
