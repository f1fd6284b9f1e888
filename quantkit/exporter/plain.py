"""The operators of the ONNX standard alone: what every target has in common.

A model without integers is whole with them. Targets exchange what their runtime does better.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import onnx
from torch import nn

from quantkit.algorithms.hadamard import hadamard
from quantkit.encoder import SharedInput, activation_of
from quantkit.errors import CheckpointError
from quantkit.exporter.emitter import Attention
from quantkit.exporter.graph import GraphWriter
from quantkit.exporter.initializers import Initializers, array
from quantkit.exporter.names import product_name
from quantkit.exporter.tables import TableWriter
from quantkit.modules import InputQuantizer, QuantEmbedding, Quantizer, QuantLinear

__all__ = ["Linears", "PlainEmitter", "gelu_of"]

LAST = np.array([-1])  # axis


class Linears(NamedTuple):
    """The modules that read one tensor, and what their graph values are named after."""

    shared: SharedInput
    modules: list[nn.Linear] | list[QuantLinear]

    @property
    def name(self) -> str:
        """The first of them."""
        return self.shared.linears[0]


class PlainEmitter:
    """Writes one model's modules as operators of the ONNX standard."""

    target: ClassVar[str] = "plain"

    def __init__(self, graph: GraphWriter, model: nn.Module) -> None:
        self._graph = graph
        self._model = model
        self._initializers = Initializers(graph)

    def mask(self, name: str) -> str:
        """What is added to attention scores: 0 where a token stands, else very little."""
        graph, rows = self._graph, self.words(name)
        nothing = graph.constant("nothing", np.float32(0))
        least = graph.constant("least", np.finfo(np.float32).min)
        return graph.add("Where", rows, nothing, least)

    def words(self, name: str) -> str:
        """The input `name`, int64, as bool [batch, 1, 1, length]: whether a token stands."""
        words = self._graph.add("Cast", name, to=onnx.TensorProto.BOOL)
        axes = self._graph.constant("score_axes", np.array([1, 2]))
        return self._graph.add("Unsqueeze", words, axes)

    def embed(self, name: str, ids: str) -> str:
        """Rows `ids` [...] of the embedding table `name` as float32 [..., dim]."""
        table = self._model.get_submodule(name)
        if isinstance(table, QuantEmbedding):
            return TableWriter(self._graph, self._initializers).rows(name, table, ids)
        if not isinstance(table, nn.Embedding):
            raise CheckpointError(f"{name} is a {type(table).__name__}, not an Embedding.")
        weight = self._initializers.tensor(f"{name}.weight", table.weight)
        return self._graph.add("Gather", weight, ids)

    def unpadded(self, x: str, mask: str) -> str:
        """`x` itself: padding stays in."""
        del mask
        return x

    def padded(self, x: str) -> str:
        """`x` itself."""
        return x

    def linear(self, shared: SharedInput, x: str) -> str:
        """All Linears that read `x` as one product, their outputs side by side."""
        modules = [self._model.get_submodule(name) for name in shared.linears]
        quantized = [module for module in modules if isinstance(module, QuantLinear)]
        if len(quantized) == len(modules):
            return self.quantized_product(Linears(shared, quantized), x)
        floats = [module for module in modules if isinstance(module, nn.Linear)]
        if len(floats) != len(modules):
            raise CheckpointError(
                f"{', '.join(shared.linears)} read one tensor but are quantized differently."
            )
        weight = self._initializers.float_weight(shared.linears[0], floats)
        return self.float_product(Linears(shared, floats), x, weight)

    def quantized_product(self, linears: Linears, x: str) -> str:
        """The product of integer weights."""
        raise CheckpointError(f"{linears.name} is quantized; this target writes float models.")

    def float_product(self, linears: Linears, x: str, weight: str) -> str:
        """`x` times a float weight [in, out], and the bias."""
        graph, bias = self._graph, self._initializers.bias(linears.name, linears.modules)
        name = product_name(linears.shared)
        if not bias:
            return graph.add("MatMul", x, weight, name=name)
        return graph.add("Add", graph.add("MatMul", x, weight), bias, name=name)

    def as_read(self, shared: SharedInput, quantizer: Quantizer, x: str) -> str:
        """`x`, float32 [batch, length, in], times the multiplier, then rotated block by block."""
        graph, name = self._graph, f"{shared.linears[0]}.input.multiplier"
        if (multiplier := quantizer.multiplier) is not None:
            vector = self._initializers.tensor(name, multiplier, np.dtype(np.float32))
            x = graph.add("Mul", x, vector)
        if (block := quantizer.rotation) is None:
            return x
        width = self._inputs(shared)
        matrix = graph.constant(f"hadamard_{block}", array(hadamard(block)))
        apart = graph.constant(
            f"blocks_apart_{width}_{block}", np.array([0, 0, width // block, block])
        )
        together = graph.constant(f"blocks_together_{width}", np.array([0, 0, width]))
        turned = graph.add("MatMul", graph.add("Reshape", x, apart), matrix)
        return graph.add("Reshape", turned, together)

    def clipped(self, shared: SharedInput, quantizer: InputQuantizer, x: str) -> str:
        """`x` within the range of codes of less than 8 bits, where QuantizeLinear does not clip."""
        if quantizer.bits == 8:
            return x
        graph, name = self._graph, shared.linears[0]
        ends = np.array([quantizer.grid.qmin, quantizer.grid.qmax], np.float32)
        bounds = (ends - array(quantizer.zero_point)) * array(quantizer.scale)
        low = graph.constant(f"{name}.input.low", bounds[0])
        return graph.add("Clip", x, low, graph.constant(f"{name}.input.high", bounds[1]))

    def self_attention(self, shared: SharedInput, x: str, attention: Attention) -> str:
        """Softmax attention of `x` over itself [batch, length or 1, hidden]."""
        graph, heads = self._graph, attention.heads
        query, key, value = self.query_key_value(shared, x, first_only=attention.first_only)
        width = self._width(shared) // 3
        query = self._apart(query, heads, width, (0, 2, 1, 3))
        key = self._apart(key, heads, width, (0, 2, 3, 1))
        value = self._apart(value, heads, width, (0, 2, 1, 3))
        factor = graph.constant("score_scale", np.float32((width // heads) ** -0.5))
        scores = graph.add("Mul", graph.add("MatMul", query, key), factor)
        shares = graph.add("Softmax", graph.add("Add", scores, attention.mask), axis=-1)
        context = graph.add("Transpose", graph.add("MatMul", shares, value), perm=(0, 2, 1, 3))
        together = graph.constant("heads_together", np.array([0, 0, width]))
        return graph.add("Reshape", context, together, name=attention.name)

    def query_key_value(self, shared: SharedInput, x: str, *, first_only: bool) -> list[str]:
        """One product of `x` in three parts, [batch, length, hidden] each.

        With `first_only` the query is that of each text's first token.
        """
        merged = self.linear(shared, x)
        parts = self._graph.add_many("Split", merged, names=["", "", ""], axis=-1, num_outputs=3)
        return [self.first_token(parts[0]), *parts[1:]] if first_only else parts

    def first_token(self, x: str, axis: int = 1) -> str:
        """The first token of each text of `x`: [batch, 1, width]; `axis` is that of the tokens.

        Three axes: ONNX Runtime makes a float Gemm of a quantized product with a bias over two.
        """
        first = self._graph.constant("first", np.array([0]))
        return self._graph.add("Gather", x, first, axis=axis)

    def norm(self, name: str, x: str, residual: str | None = None) -> str:
        """LayerNorm of `x`, or of `x + residual`."""
        graph, module = self._graph, self._norm_of(name)
        if residual is not None:
            x = graph.add("Add", x, residual)
        return graph.add(
            "LayerNormalization",
            x,
            self._initializers.tensor(f"{name}.weight", module.weight),
            self._initializers.tensor(f"{name}.bias", module.bias),
            name=name,
            axis=-1,
            epsilon=module.eps,
        )

    def activation(self, name: str, x: str) -> str:
        """The activation function of the module `name`."""
        module = self._model.get_submodule(name)
        kind = type(module).__name__
        if (approximate := gelu_of(module)) is not None:
            return self._graph.add("Gelu", x, approximate=approximate)
        if kind in {"ReLU", "Tanh", "Sigmoid"}:
            return self._graph.add({"ReLU": "Relu"}.get(kind, kind), x)
        raise CheckpointError(
            f"{name} is a {kind}; the {self.target} target writes GELU (exact and tanh), ReLU, "
            f"Tanh and Sigmoid. Check `hidden_act` in the checkpoint's config.json."
        )

    def function(self, name: Literal["tanh", "relu", "gelu"], x: str) -> str:
        """A function that a head applies without a module for it."""
        return self._graph.add({"tanh": "Tanh", "relu": "Relu", "gelu": "Gelu"}[name], x)

    def result(self, x: str, name: str) -> str:
        """The graph's output `name`: `x` itself."""
        return self._graph.add("Identity", x, name=name)

    def _norm_of(self, name: str) -> nn.LayerNorm:
        module = self._model.get_submodule(name)
        if not isinstance(module, nn.LayerNorm):
            raise CheckpointError(f"{name} is a {type(module).__name__}, not a LayerNorm.")
        return module

    def _width(self, shared: SharedInput) -> int:
        """Outputs of all Linears side by side."""
        modules = [self._model.get_submodule(name) for name in shared.linears]
        return sum(_outputs(module) for module in modules)

    def _inputs(self, shared: SharedInput) -> int:
        """Channels that quantized Linears read."""
        module = self._model.get_submodule(shared.linears[0])
        return module.integers.shape[1] if isinstance(module, QuantLinear) else 0

    def _apart(self, x: str, heads: int, width: int, order: Sequence[int]) -> str:
        """[batch, length, width] as heads, with the axes in `order`."""
        graph = self._graph
        shape = graph.constant("heads_apart", np.array([0, 0, heads, width // heads]))
        return graph.add("Transpose", graph.add("Reshape", x, shape), perm=order)


def gelu_of(module: nn.Module) -> str | None:
    """ONNX's name for the formula of a GELU, None of another function."""
    known = activation_of(module)
    return {"gelu": "none", "gelu_tanh": "tanh"}.get(known) if known else None


def _outputs(module: nn.Module) -> int:
    if isinstance(module, QuantLinear):
        return module.integers.shape[0]
    return len(array(module.weight)) if isinstance(module, nn.Linear) else 0
