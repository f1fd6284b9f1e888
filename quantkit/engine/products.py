"""The Linears that read one tensor, as one product: in integers, in floats, or in float8."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from quantkit.encoder import SharedInput
from quantkit.engine.checkpoint import Checkpoint
from quantkit.integers import Integers
from quantkit.kernels import FLOATS, Codes, Function, Matrix, Operand, Reads, apply, product
from quantkit.numerics import quantize_float8

__all__ = ["FLOAT_DTYPES", "Precision", "Product", "float_product", "make_product"]

# packed: each product as the checkpoint has it; else all of them in one kind of float.
Precision = Literal["packed", "float32", "bfloat16", "float16", "float8"]
FLOAT_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.bfloat16,  # what the row-wise product writes
}


class Product(Protocol):
    """A weight that knows how its input is to be quantized."""

    @property
    def reads(self) -> Reads:
        """What `__call__` takes: floats, or codes of this kind."""
        ...

    def __call__(
        self, x: Tensor | Codes, function: Function = "none", reads: Reads = FLOATS
    ) -> Tensor | Codes:
        """`function` of the product [tokens, out], as the next product `reads` it."""
        ...


@dataclass(frozen=True)
class IntegerProduct:
    """Weights of 8 or 4 bits."""

    weight: Operand
    reads: Reads
    dtype: torch.dtype

    def __call__(
        self, x: Tensor | Codes, function: Function = "none", reads: Reads = FLOATS
    ) -> Tensor | Codes:
        """One kernel, unless the next product has a scale per token, which needs whole rows."""
        if reads.kind in ("float", "static"):
            return product(x, self.weight, self.dtype, function, reads)
        result = product(x, self.weight, self.dtype)
        return _finished(result, function, reads)


@dataclass(frozen=True)
class FloatProduct:
    """Weights [out, in] and bias [out] in one float dtype."""

    weight: Tensor
    bias: Tensor | None
    reads: Reads = FLOATS

    def __call__(
        self, x: Tensor | Codes, function: Function = "none", reads: Reads = FLOATS
    ) -> Tensor | Codes:
        """The library's product; function and codes in one kernel behind it."""
        if isinstance(x, Codes):
            raise TypeError("a float product was given codes")
        result = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return _finished(result, function, reads)


@dataclass(frozen=True)
class Float8Product:
    """Weights as float8 e4m3 [out, in] with a scale [out] each, on inputs with one per token."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    reads: Reads

    def __call__(
        self, x: Tensor | Codes, function: Function = "none", reads: Reads = FLOATS
    ) -> Tensor | Codes:
        """The library's row-wise product on GPUs; elsewhere the same sums in float32."""
        if not isinstance(x, Codes):
            raise TypeError("a float8 product was given floats")
        if x.values.is_cuda:
            result = torch._scaled_mm(
                x.values,
                self.weight.t(),
                scale_a=x.scale[:, None],
                scale_b=self.scale[None, :],
                bias=self.bias,
                out_dtype=torch.bfloat16,
            )
        else:
            inputs = x.values.float() * x.scale[:, None]
            weight = self.weight.float() * self.scale[:, None]
            result = torch.nn.functional.linear(inputs, weight, self.bias.float())
            result = result.to(torch.bfloat16)
        return _finished(result, function, reads)


def make_product(
    source: Checkpoint,
    shared: SharedInput,
    first: SharedInput,
    precision: Precision,
    dtype: torch.dtype,
) -> Product:
    """The product of the Linears of `shared`, whose weights are stored under `first`.

    Args:
        source: the checkpoint.
        shared: names the input's quantizer.
        first: names the weights; `shared` itself, except where a model calls a layer again.
        precision: of the weights.
        dtype: of a float result.
    """
    integers = [source.integers(name) for name in first.linears]
    bias = _bias(source, first)
    present = [matrix for matrix in integers if matrix is not None]
    if len(present) == len(integers) and precision == "packed":
        reads = source.reads(shared, first)
        weight = Operand.of(Matrix.of(_merged(present)), bias, reads)
        return IntegerProduct(weight, reads, dtype)
    weights = torch.cat([_float_weight(source, name, first) for name in first.linears])
    if precision == "float8" and weights.shape[0] % 16 == 0 and weights.shape[1] % 16 == 0:
        codes, scale = quantize_float8(weights)
        given = torch.zeros_like(scale.squeeze(-1)) if bias is None else bias
        reads = Reads.float8(weights.device)
        return Float8Product(codes, scale.squeeze(-1), given.to(torch.bfloat16), reads)
    return float_product(weights, bias, dtype)


def float_product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> FloatProduct:
    """A product in `dtype`."""
    return FloatProduct(weight.to(dtype), None if bias is None else bias.to(dtype))


def _finished(result: Tensor | Codes, function: Function, reads: Reads) -> Tensor | Codes:
    """The function of a float result, as it is read."""
    if isinstance(result, Codes) or (function == "none" and reads.kind == "float"):
        return result
    floats, codes = apply(result, function, reads, keep=reads.kind == "float")
    return floats if codes is None else codes


def _merged(parts: Sequence[Integers]) -> Integers:
    """Several matrices, one below the other."""
    if len(parts) == 1:
        return parts[0]
    multipliers = [part.multipliers for part in parts if part.multipliers is not None]
    if len({part.bits for part in parts}) > 1 or len(multipliers) not in (0, len(parts)):
        codes = [part.wide() for part in parts]
        return Integers(torch.cat(codes), torch.cat([part.scale for part in parts]), 8)
    return Integers(
        torch.cat([part.stored for part in parts]),
        torch.cat([part.scale for part in parts]),
        parts[0].bits,
        torch.cat(multipliers) if multipliers else None,
    )


def _float_weight(source: Checkpoint, name: str, first: SharedInput) -> Tensor:
    """A weight for unsmoothed inputs, float32 [out, in]."""
    matrix = source.integers(name)
    if matrix is None:
        return source.tensors[f"{name}.weight"]
    multiplier = source.tensors.get(f"{first.linears[0]}.input.multiplier")
    weight = matrix.dequantized()
    return weight if multiplier is None else weight * multiplier


def _bias(source: Checkpoint, first: SharedInput) -> Tensor | None:
    """Biases side by side, float32; None if none has one."""
    found = [source.tensors.get(f"{name}.bias") for name in first.linears]
    if all(bias is None for bias in found):
        return None
    parts = [
        torch.zeros_like(source.tensors[f"{name}.scale"].squeeze(-1)) if bias is None else bias
        for name, bias in zip(first.linears, found, strict=True)
    ]
    return torch.cat(parts)
