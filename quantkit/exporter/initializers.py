"""The model's tensors as initializers: each stored once, 4-bit codes in four bits.

A two-level matrix is written as INT4 codes and int8 multipliers, and a few operators that make
one int8 matrix of them. They read constants only, so ONNX Runtime folds them when it loads the
file: 4 bits on disk, the int8 kernel in flight (facts in docs/architecture.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from quantkit.exporter.graph import GraphWriter
from quantkit.integers import Integers
from quantkit.modules import QuantEmbedding, QuantLinear

__all__ = ["Initializers", "array", "merged_bias", "merged_codes", "merged_scale"]

INT8, INT32, FLOAT = onnx.TensorProto.INT8, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT


class Initializers:
    """Writes tensors into a graph; tensors that modules share are named by the first of them."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self._stored: dict[tuple[object, ...], str] = {}
        self._made: dict[tuple[str, str], str] = {}

    def tensor(self, name: str, tensor: Tensor) -> str:
        """An initializer with the values of one of the model's tensors."""
        return self._once(name, [tensor], array(tensor))

    def float_weight(self, name: str, modules: Sequence[nn.Linear]) -> str:
        """Float weights of Linears side by side [in, out]."""
        weights = [module.weight for module in modules]
        return self._once(f"{name}.weight", weights, np.concatenate([*map(array, weights)]).T)

    def weight(self, name: str, modules: Sequence[QuantLinear]) -> str:
        """Int8 weights [in, out] of quantized Linears side by side, multipliers included."""
        matrices = [module.integers for module in modules]
        codes = np.concatenate([array(matrix.codes) for matrix in matrices]).T
        stored = [module.codes for module in modules]
        if matrices[0].bits == 8:
            return self._once(f"{name}.codes", stored, codes)
        nibbles = self._once(f"{name}.codes", stored, codes, bits=4)
        multipliers = [module.multipliers for module in modules if module.multipliers is not None]
        if not multipliers:
            return self._int8(nibbles)
        # A group is `in / groups` rows of the transposed matrix.
        values = np.concatenate([*map(array, multipliers)]).T[:, None]
        factors = self._once(f"{name}.multipliers", multipliers, values)
        return self._widened(nibbles, factors, (len(values), -1, codes.shape[1]), codes.shape)

    def scale(self, name: str, modules: Sequence[QuantLinear]) -> str:
        """Scales [out] of quantized Linears side by side."""
        return self._once(f"{name}.scale", [m.scale for m in modules], merged_scale(modules))

    def dequantized(self, name: str, modules: Sequence[QuantLinear]) -> str:
        """Float weights [in, out], folded when the file is loaded: small on disk only."""
        weight = self._cast(self.weight(name, modules), FLOAT)
        return self._make("Mul", weight, self.scale(name, modules))

    def bias(self, name: str, modules: Sequence[nn.Linear] | Sequence[QuantLinear]) -> str:
        """Biases of Linears side by side; "" without any."""
        merged = merged_bias(modules)
        present = [module.bias for module in modules if module.bias is not None]
        return "" if merged is None else self._once(f"{name}.bias", present, merged)

    def table(self, name: str, table: QuantEmbedding) -> str:
        """Int8 codes [rows, dim] of an embedding table, multipliers and frequent rows included."""
        matrix = table.integers
        if matrix.bits == 8:
            return self._once(f"{name}.codes", [table.codes], array(matrix.codes))
        codes = self._nibbles_of(name, table, matrix)
        if table.frequent_rows is None or table.frequent_codes is None:
            return codes
        rows = self.tensor(f"{name}.frequent_rows", table.frequent_rows[:, None])
        values = self.tensor(f"{name}.frequent_codes", table.frequent_codes)
        return self._make("ScatterND", codes, rows, values)

    def _nibbles_of(self, name: str, table: QuantEmbedding, matrix: Integers) -> str:
        nibbles = self._once(f"{name}.codes", [table.codes], array(matrix.codes), bits=4)
        if table.multipliers is None:
            return self._int8(nibbles)
        values = array(table.multipliers)[:, :, None]
        factors = self._once(f"{name}.multipliers", [table.multipliers], values)
        return self._widened(nibbles, factors, (*values.shape[:2], -1), matrix.shape)

    def _widened(
        self, nibbles: str, factors: str, grouped: Sequence[int], shape: Sequence[int]
    ) -> str:
        """Codes times their groups' multipliers, as int8 of `shape`."""
        graph = self._graph
        inside = graph.constant(f"{nibbles}/grouped", np.array(grouped))
        outside = graph.constant(f"{nibbles}/shape", np.array(shape))
        # int32: ONNX Runtime multiplies no int8.
        codes = self._make("Reshape", self._cast(nibbles, INT32), inside)
        product = self._make("Mul", codes, self._cast(factors, INT32))
        return self._int8(self._make("Reshape", product, outside))

    def _int8(self, value: str) -> str:
        return self._cast(value, INT8)

    def _cast(self, value: str, kind: int) -> str:
        return self._make("Cast", value, to=kind)

    def _make(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """A node over constants, made once for the same inputs."""
        key = (f"{operator}{attributes}", " ".join(inputs))
        if key not in self._made:
            self._made[key] = self._graph.add(operator, *inputs, **attributes)
        return self._made[key]

    def _once(self, name: str, tensors: Sequence[Tensor], values: np.ndarray, bits: int = 8) -> str:
        """An initializer of `values`, which are made of the model's `tensors` and nothing else."""
        memory = tuple((tensor.data_ptr(), tensor.shape) for tensor in tensors)
        key = (name.rpartition(".")[2], values.shape, *memory)
        if key not in self._stored:
            write = self._graph.nibbles if bits == 4 else self._graph.constant
            self._stored[key] = write(name, values)
        return self._stored[key]


def array(tensor: Tensor | nn.Parameter) -> np.ndarray:
    """The tensor's values."""
    values: np.ndarray = tensor.detach().cpu().numpy()
    return values


def merged_codes(modules: Sequence[QuantLinear]) -> np.ndarray:
    """Int8 weights [in, out] of Linears side by side, as an integer kernel takes them."""
    return np.concatenate([array(module.integers.wide()) for module in modules]).T


def merged_scale(modules: Sequence[QuantLinear]) -> np.ndarray:
    """Scales [out] of Linears side by side."""
    return np.concatenate([array(module.scale) for module in modules])[:, 0]


def merged_bias(modules: Sequence[nn.Linear] | Sequence[QuantLinear]) -> np.ndarray | None:
    """Biases [out] side by side, zeros for a Linear without one; None if none has one."""
    if all(module.bias is None for module in modules):
        return None
    return np.concatenate([_bias(module) for module in modules])


def _bias(module: nn.Linear | QuantLinear) -> np.ndarray:
    if module.bias is not None:
        return array(module.bias)
    outputs = module.weight.shape[0] if isinstance(module, nn.Linear) else module.integers.shape[0]
    return np.zeros(outputs, np.float32)
