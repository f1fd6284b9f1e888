"""The `cuda` target: operators that ONNX Runtime's CUDA provider has kernels for, in float16.

4-bit weights with float inputs stay in four bits (`MatMulNBits`, `GatherBlockQuantized`), 8-bit
ones with symmetric inputs are `MatMulInteger` of int8, scaled in float32 as the model scales
them. Norm and residual are one operator; ONNX Runtime makes `BiasGelu` of bias and GELU when it
loads the file. Nothing may run on the host: `cuda_table` counts what would.
"""

from typing import Any, ClassVar

import numpy as np
import onnx
from torch import nn

from quantkit.encoder import SharedInput
from quantkit.errors import CheckpointError
from quantkit.exporter.emitter import Attention
from quantkit.exporter.graph import CONTRIB, GraphWriter
from quantkit.exporter.initializers import (
    array,
    as_floats,
    merged_bias,
    merged_narrow_codes,
    merged_scale,
)
from quantkit.exporter.names import codes_name, product_name
from quantkit.exporter.plain import Linears, PlainEmitter
from quantkit.exporter.tables import TableWriter
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear
from quantkit.numerics import centre

__all__ = ["CudaEmitter"]

BLOCKS = (16, 32, 64, 128)  # inputs that a scale may stand for, the operators say


class CudaEmitter(PlainEmitter):
    """Writes one model's modules as operators of the CUDA provider.

    With `single` the same graph is written in float32: its twin, which kernels of the CPU
    provider compute, and the parity gate reads.
    """

    target: ClassVar[str] = "cuda"

    def __init__(self, graph: GraphWriter, model: nn.Module, *, single: bool = False) -> None:
        super().__init__(graph, model)
        self._type: np.dtype[Any] = np.dtype(np.float32 if single else np.float16)
        self._kind = onnx.TensorProto.FLOAT if single else onnx.TensorProto.FLOAT16
        self._initializers.floats = self._type

    def mask(self, name: str) -> str:
        """How many tokens of each text the input `name` shows, int64 [batch].

        They are taken to be its first ones: padding is on the right.
        """
        tokens = self._graph.constant("token_axis", np.array([1]))
        return self._graph.add("ReduceSum", name, tokens, keepdims=0)

    def embed(self, name: str, ids: str) -> str:
        """Rows `ids` [...] of the embedding table `name` [..., dim]."""
        table = self._model.get_submodule(name)
        if not isinstance(table, QuantEmbedding):
            return super().embed(name, ids)
        writer = TableWriter(self._graph, self._initializers, self._type)
        if table.bits == 8:
            return writer.rows(name, table, ids)
        scales = array(table.scale) * (
            1.0 if table.multipliers is None else array(table.multipliers)
        )
        width = table.integers.shape[1]
        block, scales = self._blocks(name, width, scales)
        rows = self._graph.add(
            "GatherBlockQuantized",
            self._graph.nibbles(f"{name}.codes", array(table.integers.codes)),
            ids,
            self._half(f"{name}.block_scale", scales),
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=block,
        )
        return writer.or_frequent(name, table, ids, rows)

    def quantized_product(self, linears: Linears, x: str) -> str:
        """A 4-bit product of float inputs, or an integer one of symmetric ones."""
        modules = [module for module in linears.modules if isinstance(module, QuantLinear)]
        quantizer = modules[0].input_quantizer
        if isinstance(quantizer, InputQuantizer):
            return self._integer_product(linears, modules, quantizer, x)
        if quantizer is not None:
            raise CheckpointError(
                f"{linears.name} reads inputs with a scale per token, which the cuda target does "
                f"not write. Quantize again with --target cuda, or export with --target cpu."
            )
        if modules[0].bits == 8:
            codes = self._initializers.weight(linears.name, modules)
            wide = self._graph.add("Cast", codes, to=self._kind)
            scale = self._half(f"{linears.name}.scale", merged_scale(modules))
            return self.float_product(linears, x, self._graph.add("Mul", wide, scale))
        return self._four_bit_product(linears, modules, x)

    def _four_bit_product(self, linears: Linears, modules: list[QuantLinear], x: str) -> str:
        graph, name = self._graph, linears.name
        codes = merged_narrow_codes(modules).T  # [out, in]
        scales = np.concatenate([_scales(module) for module in modules])
        outputs, inputs = codes.shape
        block, scales = self._blocks(name, inputs, scales)
        nibbles = (codes + 8).astype(np.uint8).reshape(outputs, inputs // block, block)
        packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        bias = merged_bias(modules)
        product = graph.add(
            "MatMulNBits",
            x,
            graph.constant(f"{name}.codes", packed),
            self._half(f"{name}.block_scale", scales.ravel()),
            domain=CONTRIB,
            name="" if bias is not None else product_name(linears.shared),
            K=inputs,
            N=outputs,
            bits=4,
            block_size=block,
            accuracy_level=1,  # inputs stay float
        )
        if bias is None:
            return product
        added = self._half(f"{name}.bias", bias)
        return graph.add("Add", product, added, name=product_name(linears.shared))

    def _integer_product(
        self, linears: Linears, modules: list[QuantLinear], quantizer: InputQuantizer, x: str
    ) -> str:
        """An int8 product, scaled in float32: in float16 its sums would overflow."""
        graph, name, single = self._graph, linears.name, onnx.TensorProto.FLOAT
        if int(quantizer.zero_point) != centre(quantizer.grid):
            raise CheckpointError(
                f"{name} reads inputs with the zero point {int(quantizer.zero_point)}; CUDA's "
                f"integer product takes symmetric ones. Quantize again with --target cuda (in a "
                f"recipe `activations: {{symmetric: true}}`), or export with --target cpu."
            )
        x = graph.add("Cast", x, to=single)
        x = self.as_read(linears.shared, quantizer, x)
        x = self.clipped(linears.shared, quantizer, x)
        scale = graph.constant(f"{name}.input.scale", array(quantizer.scale))
        zero = graph.constant("zero_code", np.int8(0))
        codes = graph.add("QuantizeLinear", x, scale, zero, name=codes_name(linears.shared))
        weight = self._initializers.weight(name, modules)
        sums = graph.add("Cast", graph.add("MatMulInteger", codes, weight), to=single)
        # In this order the result is `numerics.integer_linear`'s bit for bit.
        factors = array(quantizer.scale) * merged_scale(modules)
        product = graph.add("Mul", sums, graph.constant(f"{name}.scales", factors))
        bias = merged_bias(modules)
        if bias is not None:
            product = graph.add("Add", product, graph.constant(f"{name}.bias", bias))
        return graph.add("Cast", product, to=self._kind, name=product_name(linears.shared))

    def self_attention(self, shared: SharedInput, x: str, attention: Attention) -> str:
        """Softmax attention of `x` over itself [batch, length or 1, hidden].

        ONNX's own operator of opset 24 with numbers of tokens, which the CUDA provider computes
        with FlashAttention, past no padding. `MultiHeadAttention` with a mask takes seven kernels.
        """
        return self._graph.add(
            "Attention",
            *self.query_key_value(shared, x, first_only=attention.first_only),
            "",  # no mask for each query
            "",  # no keys
            "",  # and values of before
            attention.mask,
            q_num_heads=attention.heads,
            kv_num_heads=attention.heads,
            name=attention.name,
        )

    def norm(self, name: str, x: str, residual: str | None = None) -> str:
        """LayerNorm of `x`, or of `x + residual` in one operator."""
        if residual is None:
            return super().norm(name, x)
        module = self._norm_of(name)
        return self._graph.add(
            "SkipLayerNormalization",
            x,
            residual,
            self._initializers.tensor(f"{name}.weight", module.weight),
            self._initializers.tensor(f"{name}.bias", module.bias),
            domain=CONTRIB,
            name=name,
            epsilon=module.eps,
        )

    def result(self, x: str, name: str) -> str:
        """The graph's output `name`: `x` as float32."""
        return self._graph.add("Cast", x, to=onnx.TensorProto.FLOAT, name=name)

    def _half(self, name: str, values: np.ndarray) -> str:
        """A constant in the graph's float type."""
        return self._graph.constant(name, as_floats(name, values, self._type))

    def _blocks(self, name: str, width: int, scales: np.ndarray) -> tuple[int, np.ndarray]:
        """A block size of the operators', and a scale for each of its blocks [rows, blocks]."""
        given = width // scales.shape[1]
        fits = [size for size in BLOCKS if given % size == 0]
        if not fits:
            raise CheckpointError(
                f"{name} has a scale for every {given} inputs; the cuda target takes groups that "
                f"are multiples of 16. Quantize again with a `group` of 16, 32, 64 or 128."
            )
        return fits[-1], np.repeat(scales, given // fits[-1], axis=1)


def _scales(module: QuantLinear | QuantEmbedding) -> np.ndarray:
    """Scales [out, groups] of two levels, [out, 1] of one."""
    if module.multipliers is None:
        return array(module.scale)
    result: np.ndarray = array(module.scale) * array(module.multipliers)
    return result
