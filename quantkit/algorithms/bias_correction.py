"""Bias correction: put back the part of the quantization error that is the same for all inputs.

Nagel et al. 2019 (arXiv 1906.04721), section 4.2: the error (Ŵ - W) x of an output has a mean,
and a layer's bias can carry it. Their equation is for quantized weights; with x̂ the quantized
inputs the same holds for both:

    b' = b + W E[x] - Ŵ E[x̂]
"""

import torch
from torch import Tensor

__all__ = ["corrected_bias"]


def corrected_bias(
    bias: Tensor | None,
    weight: Tensor,
    dequantized: Tensor,
    mean_input: Tensor,
    mean_quantized_input: Tensor,
) -> Tensor:
    """The bias [out] with which the quantized layer's mean output is the float layer's.

    For b = 1, W = [2, 1], Ŵ = [2, 0], E[x] = [1, 3] and E[x̂] = [2, 3] it is 1 + 5 - 4 = 2.

    Args:
        bias: [out], or None for 0.
        weight: the float layer's W [out, in].
        dequantized: the quantized layer's Ŵ [out, in].
        mean_input: E[x] [in], over the tokens that the float layer sees.
        mean_quantized_input: E[x̂] [in], over the tokens that the quantized layer sees, as the
            input quantizer passes them on.

    Returns:
        A tensor of the weight's dtype, computed in float64.
    """
    exact = [t.to(torch.float64) for t in (weight, mean_input, dequantized, mean_quantized_input)]
    shift = exact[0] @ exact[1] - exact[2] @ exact[3]
    return (shift if bias is None else bias.to(torch.float64) + shift).to(weight.dtype)
