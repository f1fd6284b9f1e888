"""The model's tensors as initializers: each stored once, 4-bit codes in four bits.

A two-level matrix is written as INT4 codes and multipliers, and a few operators that make one int8
matrix of them. They read constants only, so ONNX Runtime folds them when it loads the
file: 4 bits on disk, the int8 kernel in flight (facts in docs/architecture.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from quantkit.errors import CheckpointError
from quantkit.exporter.graph import GraphWriter
from quantkit.modules import QuantLinear

__all__ = [
    "Initializers",
    "array",
    "as_floats",
    "merged_bias",
    "merged_block_scale",
    "merged_narrow_codes",
    "merged_scale",
]

INT8, FLOAT = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT
# INT4 is -8..7, multipliers are 1..16.
MIDDLE = 9


class Initializers:
    """Writes tensors into a graph; tensors that modules share are named by the first of them."""

    def __init__(self, graph: GraphWriter) -> None:
        self.floats: np.dtype[Any] = np.dtype(np.float32)  # what float tensors are written as
        self._graph = graph
        self._stored: dict[tuple[object, ...], str] = {}
        self._made: dict[tuple[str, str], str] = {}

    def tensor(self, name: str, tensor: Tensor, kind: "np.dtype[Any] | None" = None) -> str:
        """An initializer with the values of one of the model's tensors; floats may be of `kind`."""
        return self._once(name, [tensor], array(tensor), kind=kind)

    def float_weight(self, name: str, modules: Sequence[nn.Linear]) -> str:
        """Float weights of Linears side by side [in, out]."""
        weights = [module.weight for module in modules]
        return self._once(f"{name}.weight", weights, np.concatenate([*map(array, weights)]).T)

    def weight(self, name: str, modules: Sequence[QuantLinear]) -> str:
        """Int8 weights [in, out] of quantized Linears side by side, multipliers included."""
        matrices = [module.integers for module in modules]
        codes = merged_narrow_codes(modules)
        stored = [module.codes for module in modules]
        if matrices[0].bits == 8:
            return self._once(f"{name}.codes", stored, codes)
        multipliers = [module.multipliers for module in modules if module.multipliers is not None]
        if not multipliers:
            return self._cast(self._once(f"{name}.codes", stored, codes, bits=4), INT8)
        # As Linears hold them, [out, in]: the columns of a group lie side by side.
        grouped = codes.T.reshape(1, -1, codes.shape[0] // multipliers[0].shape[1])
        nibbles = self._once(f"{name}.codes", stored, grouped, bits=4)
        values = np.concatenate([*map(array, multipliers)]).reshape(-1, 1, 1)
        factors = self._once(f"{name}.multipliers", multipliers, values - MIDDLE, bits=4)
        return self._widened(nibbles, factors, len(values), codes.shape)

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

    def blocks(self, name: str, modules: Sequence[QuantLinear]) -> tuple[str, str, int | None]:
        """Codes [in, out] in the bits they have, float scales, and the inputs a scale is for.

        Scales are [out], and for all inputs (None), or of two levels [in / g, out].
        """
        matrices = [module.integers for module in modules]
        stored = [module.codes for module in modules]
        values = merged_narrow_codes(modules)
        codes = self._once(f"{name}.codes", stored, values, bits=matrices[0].bits)
        if matrices[0].multipliers is None:
            return codes, self.scale(name, modules), None
        scales = merged_block_scale(modules)
        written = self._once(f"{name}.block_scale", [m.scale for m in modules], scales)
        return codes, written, len(values) // len(scales)

    def _widened(self, nibbles: str, factors: str, groups: int, shape: Sequence[int]) -> str:
        """Int8 of `shape` [in, out]: codes [1, groups, g] times multipliers [groups, 1, 1].

        ONNX Runtime keeps all that it folds until everything is folded, and its `Mul` takes no
        int8: through int32, BERT-base took 1.6 GB to open. A convolution of one input per output
        multiplies each group by its multiplier and stays in 8 bits; with scales of 1 its products,
        at most 7 * 16, are exact.
        """
        graph = self._graph
        one = graph.constant("scale_1", np.float32(1))
        zero = graph.constant("zero_code", np.int8(0))
        # (stored - (-9)): the zero point makes multipliers of what is stored in four bits.
        middle = graph.constant("middle_multiplier", np.int8(-MIDDLE))
        inputs = (self._cast(nibbles, INT8), one, zero, self._cast(factors, INT8), one, middle)
        product = self._make("QLinearConv", *inputs, one, zero, group=groups, kernel_shape=[1])
        rows = graph.constant(f"{nibbles}/shape", np.array(shape[::-1]))
        return self._make("Transpose", self._make("Reshape", product, rows), perm=[1, 0])

    def _cast(self, value: str, kind: int) -> str:
        return self._make("Cast", value, to=kind)

    def _make(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """A node over constants, made once for the same inputs."""
        key = (f"{operator}{attributes}", " ".join(inputs))
        if key not in self._made:
            self._made[key] = self._graph.add(operator, *inputs, **attributes)
        return self._made[key]

    def _once(
        self,
        name: str,
        tensors: Sequence[Tensor],
        values: np.ndarray,
        bits: int = 8,
        kind: "np.dtype[Any] | None" = None,
    ) -> str:
        """An initializer of `values`, which are made of the model's `tensors` and nothing else."""
        memory = tuple((tensor.data_ptr(), tensor.shape) for tensor in tensors)
        key = (name.rpartition(".")[2], values.shape, *memory)
        if key not in self._stored:
            if values.dtype == np.float32:
                values = as_floats(name, values, kind or self.floats)
            write = self._graph.nibbles if bits == 4 else self._graph.constant
            self._stored[key] = write(name, values)
        return self._stored[key]


def as_floats(name: str, values: np.ndarray, kind: "np.dtype[Any]") -> np.ndarray:
    """Float32 values in another float type.

    Raises:
        CheckpointError: one is beyond the type's range.
    """
    with np.errstate(over="ignore"):
        found: np.ndarray = values.astype(kind)
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"{name} holds {float(np.abs(values).max()):.3g}, which {kind} has no place for. "
            f"Export with --target cpu, which computes in float32."
        )
    return found


def array(tensor: Tensor | nn.Parameter) -> np.ndarray:
    """The tensor's values."""
    values: np.ndarray = tensor.detach().cpu().numpy()
    return values


def merged_narrow_codes(modules: Sequence[QuantLinear]) -> np.ndarray:
    """Codes [in, out] of Linears side by side, without the multipliers of two levels."""
    return np.concatenate([array(module.integers.codes) for module in modules]).T


def merged_scale(modules: Sequence[QuantLinear]) -> np.ndarray:
    """Scales [out] of Linears side by side."""
    return np.concatenate([array(module.scale) for module in modules])[:, 0]


def merged_block_scale(modules: Sequence[QuantLinear]) -> np.ndarray:
    """Scales [in / g, out] of the groups of two-level Linears side by side."""
    scales = [
        array(module.scale) * array(module.multipliers)
        for module in modules
        if module.multipliers is not None
    ]
    return np.concatenate(scales).T


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
