"""The `portable` target: the ONNX standard alone, for any runtime.

    x -> QuantizeLinear -> DequantizeLinear -\
                                              MatMul -> Add(bias)
    weight codes -------> DequantizeLinear --/

Runtimes recognise these pairs and multiply integers; where one does not, it computes the same
in float. Codes of symmetric inputs are int8 around 0, the model's less 128; others are the
model's own uint8, with its zero point, which some runtimes (TensorRT) do not take. Weights are
int8 with a scale a channel, or INT4 with a scale for each block of inputs: the channel's times
the group's multiplier. Inputs keep three axes and the bias stays a float `Add`: with two axes, or
static ones, ONNX Runtime would make a float Gemm of it (docs/architecture.md).
"""

from typing import ClassVar

import numpy as np

from quantkit.errors import CheckpointError
from quantkit.exporter.initializers import array
from quantkit.exporter.names import codes_name
from quantkit.exporter.plain import Linears, PlainEmitter
from quantkit.modules import InputQuantizer, QuantLinear, TokenQuantizer
from quantkit.numerics import centre

__all__ = ["PortableEmitter", "portable_zero_point"]


class PortableEmitter(PlainEmitter):
    """Writes one model's modules as operators of the ONNX standard, integers as pairs."""

    target: ClassVar[str] = "portable"

    def quantized_product(self, linears: Linears, x: str) -> str:
        """A product of dequantized codes, or of float inputs and dequantized weights."""
        modules = [module for module in linears.modules if isinstance(module, QuantLinear)]
        quantizer = modules[0].input_quantizer
        if quantizer is not None:
            x = self._on_the_grid(linears, quantizer, x)
        return self.float_product(linears, x, self._weight(linears.name, modules))

    def _weight(self, name: str, modules: list[QuantLinear]) -> str:
        """Float weights [in, out] of stored integers."""
        codes, scale, block = self._initializers.blocks(name, modules)
        if block is None:
            return self._graph.add("DequantizeLinear", codes, scale, axis=1)
        return self._graph.add("DequantizeLinear", codes, scale, axis=0, block_size=block)

    def _on_the_grid(
        self, linears: Linears, quantizer: InputQuantizer | TokenQuantizer, x: str
    ) -> str:
        """`x` rounded to the values that its codes stand for."""
        graph, name = self._graph, linears.name
        if isinstance(quantizer, TokenQuantizer):
            raise CheckpointError(
                f"{name} reads inputs with a scale per token, which the standard's pairs do not "
                f"have. Quantize with `activations: {{per: tensor, symmetric: true}}`, or export "
                f"with --target cpu."
            )
        x = self.as_read(linears.shared, quantizer, x)
        scale = graph.constant(f"{name}.input.scale", array(quantizer.scale))
        x = self.clipped(linears.shared, quantizer, x)
        zero_point = portable_zero_point(quantizer)
        place = "zero_code" if zero_point.dtype == np.int8 else f"{name}.input.zero_point"
        zero = graph.constant(place, zero_point)
        codes = graph.add("QuantizeLinear", x, scale, zero, name=codes_name(linears.shared))
        return graph.add("DequantizeLinear", codes, scale, zero)


def portable_zero_point(quantizer: InputQuantizer) -> np.ndarray:
    """Of the codes that the file has: int8 0 for symmetric inputs, else the model's own, uint8."""
    own = array(quantizer.zero_point)
    return np.zeros((), np.int8) if int(own) == centre(quantizer.grid) else own
