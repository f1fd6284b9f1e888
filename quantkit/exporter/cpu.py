"""The `cpu` target: operators that ONNX Runtime's CPU provider runs in integers.

Emitted directly rather than as QuantizeLinear/DequantizeLinear pairs that a runtime has to
recognise: a static QDQ graph of the same model ran its products in float, three times
slower than a float file. The five functions are what a target consists of.

Tensors that modules share are stored once: the first module that needs them names them.
"""

from typing import ClassVar, NamedTuple

import numpy as np
import onnx

from quantkit.encoder import SharedInput
from quantkit.exporter.emitter import Attention
from quantkit.exporter.graph import CONTRIB
from quantkit.exporter.initializers import array
from quantkit.exporter.names import codes_name, product_name, token_scale_name
from quantkit.exporter.plain import Linears, PlainEmitter
from quantkit.modules import InputQuantizer, QuantLinear, TokenQuantizer
from quantkit.numerics import centre, symmetric_grid

__all__ = ["CpuEmitter"]

FLOAT = onnx.TensorProto.FLOAT
LAST = np.array([-1])  # axis


class _Operands(NamedTuple):
    """Graph values that an integer product takes."""

    codes: str
    weight: str
    scale: str  # of the inputs; one per token: [batch, length, 1]
    weight_scale: str
    zero_point: str
    bias: str  # "" without


class CpuEmitter(PlainEmitter):
    """Writes one model's modules as operators of the CPU provider."""

    target: ClassVar[str] = "cpu"

    def quantized_product(self, linears: Linears, x: str) -> str:
        """An integer product, or of float inputs one with weights that are folded to float."""
        shared = linears.shared
        modules = [module for module in linears.modules if isinstance(module, QuantLinear)]
        quantizer = modules[0].input_quantizer
        if quantizer is None:
            weight = self._initializers.dequantized(shared.linears[0], modules)
            return self.float_product(linears, x, weight)
        operands = self._operands(shared, modules, x)
        if isinstance(quantizer, TokenQuantizer):
            return self._token_product(shared, operands)
        return self._graph.add(
            "MatMulIntegerToFloat",
            operands.codes,
            operands.weight,
            operands.scale,
            operands.weight_scale,
            operands.zero_point,
            "",
            operands.bias,
            domain=CONTRIB,
            name=product_name(shared),
        )

    def _token_product(self, shared: SharedInput, operands: _Operands) -> str:
        """An integer product whose input scale differs from token to token."""
        graph = self._graph
        accumulator = graph.add(
            "MatMulInteger", operands.codes, operands.weight, operands.zero_point
        )
        # In this order the result is `numerics.integer_linear`'s bit for bit. Abs changes nothing:
        # without it ONNX Runtime takes the pattern for a product with one scale for all tokens.
        scale = graph.add("Abs", graph.add("Mul", operands.scale, operands.weight_scale))
        values = graph.add("Cast", accumulator, to=FLOAT)
        if not operands.bias:
            return graph.add("Mul", values, scale, name=product_name(shared))
        product = graph.add("Mul", values, scale)
        return graph.add("Add", product, operands.bias, name=product_name(shared))

    def _operands(self, shared: SharedInput, modules: list[QuantLinear], x: str) -> _Operands:
        """Codes of `x` and everything else that an integer product takes."""
        name, quantizer = shared.linears[0], modules[0].input_quantizer
        if quantizer is None:
            raise ValueError(f"{name} reads floats")
        x = self.as_read(shared, quantizer, x)
        if isinstance(quantizer, InputQuantizer):
            codes, scale, zero_point = self._static(shared, quantizer, x)
        else:
            codes, scale, zero_point = self._dynamic(shared, quantizer, x)
        return _Operands(
            codes,
            self._initializers.weight(name, modules),
            scale,
            self._initializers.scale(name, modules),
            zero_point,
            self._initializers.bias(name, modules),
        )

    def _static(
        self, shared: SharedInput, quantizer: InputQuantizer, x: str
    ) -> tuple[str, str, str]:
        """Codes of `x`, their scale and zero point, both constants."""
        graph, name = self._graph, shared.linears[0]
        scale = graph.constant(f"{name}.input.scale", array(quantizer.scale))
        zero_point = graph.constant(f"{name}.input.zero_point", array(quantizer.zero_point))
        x = self.clipped(shared, quantizer, x)
        codes = graph.add("QuantizeLinear", x, scale, zero_point, name=codes_name(shared))
        return codes, scale, zero_point

    def _dynamic(
        self, shared: SharedInput, quantizer: TokenQuantizer, x: str
    ) -> tuple[str, str, str]:
        """Codes of `x` with a scale per token, their scales [..., 1] and zero point."""
        graph, bits = self._graph, quantizer.bits
        zero_point = graph.constant(f"centre{bits}", np.uint8(centre(quantizer.grid)))
        one, last = graph.constant("one_float", np.float32(1)), graph.constant("last", LAST)
        widest = graph.add("ReduceMax", graph.add("Abs", x), last, keepdims=1)
        top = graph.constant(f"top{bits}", np.float32(symmetric_grid(bits).qmax))
        scale = graph.add("Div", widest, top)
        # A token of zeros, or of values too small for a normal scale, has scale 1.
        least = graph.constant("tiny", np.finfo(np.float32).tiny)
        small = graph.add("Less", scale, least)
        scale = graph.add("Where", small, one, scale, name=token_scale_name(shared))
        ratio = graph.add("Div", x, scale)
        return (
            graph.add("QuantizeLinear", ratio, one, zero_point, name=codes_name(shared)),
            scale,
            zero_point,
        )

    def mask(self, name: str) -> str:
        """The input `name`, int64, as bool [batch, 1, length, length]: whether a token stands.

        A mask for every query: ONNX Runtime 1.31 refuses one row for all of them, and 1.23 reads
        past its end.
        """
        graph, rows = self._graph, self.words(name)
        one = graph.constant("one_row", np.array([1]))
        length = graph.add("Shape", name, start=1, end=2)
        return graph.add("Expand", rows, graph.add("Concat", one, one, length, one, axis=0))

    def self_attention(self, shared: SharedInput, x: str, attention: Attention) -> str:
        """Softmax attention of `x` over itself [batch, length or 1, hidden].

        ONNX's own operator of opset 23, which measured fastest for single texts and for batches
        (docs/cpu_graph.md).
        """
        mask = attention.mask
        if attention.first_only:
            mask = self.first_token(mask, axis=2)
        return self._graph.add(
            "Attention",
            *self.query_key_value(shared, x, first_only=attention.first_only),
            mask,
            q_num_heads=attention.heads,
            kv_num_heads=attention.heads,
            name=attention.name,
        )
