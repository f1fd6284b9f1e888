"""Quantized modules: they hold integers, and compute what the exported file computes.

No ONNX here and no policy: which module is quantized, and with which scales, is decided
elsewhere and handed in as tensors.
"""

import torch
from torch import Tensor, nn

from quantkit.numerics import asymmetric_grid, integer_linear, quantize

__all__ = ["InputQuantizer", "QuantEmbedding", "QuantLinear"]


class InputQuantizer(nn.Module):
    """Static per-tensor uint8 codes of a Linear's input, after an optional channel multiplier.

    Linears that read the same tensor (query, key and value) share one of these: the first
    owns it as its submodule `input`, the others refer to it.

    Args:
        scale: float32 scalar.
        zero_point: uint8 scalar.
        multiplier: float32 [in], the reciprocal of the smoothing vector; None without.
    """

    scale: Tensor
    zero_point: Tensor
    multiplier: Tensor | None

    def __init__(self, scale: Tensor, zero_point: Tensor, multiplier: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("multiplier", multiplier)
        self.grid = asymmetric_grid(8)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of `x` [..., in] as uint8 [..., in]."""
        if self.multiplier is not None:
            x = x * self.multiplier
        return quantize(x, self.scale, self.zero_point, self.grid)


class QuantLinear(nn.Module):
    """A Linear of int8 weight codes and uint8 input codes with one scale per output channel.

    Args:
        codes: int8 [out, in].
        scale: float32 [out, 1].
        bias: float32 [out], or None.
        input_quantizer: what makes its input codes.
        owner: whether the quantizer is this module's own; else another Linear's.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        input_quantizer: InputQuantizer,
        *,
        owner: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        if owner:
            self.input = input_quantizer
        # A tuple keeps a borrowed quantizer out of this module's state dict.
        self._reads = (input_quantizer,)

    @property
    def input_quantizer(self) -> InputQuantizer:
        """What makes the input codes, owned or borrowed."""
        return self._reads[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of the scale."""
        quantizer = self.input_quantizer
        return integer_linear(
            quantizer(x),
            quantizer.scale,
            quantizer.zero_point,
            self.codes,
            self.scale,
            self.bias,
        )

    def extra_repr(self) -> str:
        """Shape and bits, as `print(model)` shows them."""
        return f"in={self.codes.shape[1]}, out={self.codes.shape[0]}, bits=8"


class QuantEmbedding(nn.Module):
    """An embedding table of int8 codes with one scale per row.

    Args:
        codes: int8 [rows, dim].
        scale: float32 [rows, 1].
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Row numbers [...] -> vectors [..., dim], in the dtype of the scale."""
        rows = torch.nn.functional.embedding(ids, self.codes)
        return rows.to(self.scale.dtype) * torch.nn.functional.embedding(ids, self.scale)

    def extra_repr(self) -> str:
        """Shape and bits, as `print(model)` shows them."""
        return f"rows={self.codes.shape[0]}, dim={self.codes.shape[1]}, bits=8"
