"""The numbers that a file stores: how many bytes, and for which part of an encoder."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from quantkit.exporter.inspect import tensor_bytes

__all__ = ["Component", "Stored", "stored_numbers", "totals"]

Component = str  # embeddings, encoder, head, overhead

_LOOKUPS = frozenset({"Gather", "GatherBlockQuantized"})
_PRODUCTS_NAMES = """
MatMul Gemm FusedMatMul FusedGemm MatMulNBits MatMulInteger MatMulIntegerToFloat QGemm
QLinearMatMul DynamicQuantizeMatMul Attention QAttention
"""
_PRODUCTS = frozenset(_PRODUCTS_NAMES.split())
SMALL = 64  # numbers: a constant of the graph rather than a weight
LARGE = 1024  # bytes from which a second copy is worth a word


@dataclass(frozen=True)
class Stored:
    """One initializer or constant."""

    name: str
    kind: str  # element type, e.g. int8
    shape: tuple[int, ...]
    size: int  # bytes
    component: Component
    digest: str  # of its bytes, for large ones

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up in it."""
        return self.component == "embeddings" and len(self.shape) == 2

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floats."""
        return self.kind.startswith(("float", "bfloat", "double"))


def stored_numbers(model: onnx.ModelProto) -> list[Stored]:
    """All of them, told apart by what reads them, whatever their names are.

    A table is what a lookup with computed indices reads. The head is what the last product
    reads, if it computes the file's output. Small integers and scalars are overhead.
    """
    tensors = list(_tensors(model))
    readers = _readers(model)
    head = _head_weights(model)
    return [
        Stored(
            tensor.name,
            TensorProto.DataType.Name(tensor.data_type).lower(),
            tuple(tensor.dims),
            tensor_bytes(tensor),
            _component(tensor, readers, head),
            _digest(tensor),
        )
        for tensor in tensors
    ]


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    tensor = TensorProto()
                    tensor.CopyFrom(attribute.t)
                    tensor.name = node.output[0]
                    yield tensor


def _readers(model: onnx.ModelProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """The nodes that read each value, and at which place."""
    readers = defaultdict(list)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    return readers


def _digest(tensor: TensorProto) -> str:
    return hashlib.sha256(tensor.raw_data).hexdigest() if tensor_bytes(tensor) >= LARGE else ""


def _component(
    tensor: TensorProto,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
    head: frozenset[str],
) -> Component:
    if len(tensor.dims) >= 2 and _is_looked_up(tensor.name, readers):
        return "embeddings"
    is_float = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if math.prod(tensor.dims) <= (1 if is_float else SMALL):
        return "overhead"
    return "head" if tensor.name in head else "encoder"


def _is_looked_up(name: str, readers: dict[str, list[tuple[onnx.NodeProto, int]]]) -> bool:
    """Whether a lookup reads the value, or what is made of it alone (casts, scales, reshapes)."""
    for node, place in readers[name]:
        if node.op_type in _LOOKUPS:
            if place != 1:
                return True
        elif node.op_type == "EmbedLayerNormalization":
            if place in {2, 3, 4}:
                return True
        elif node.op_type in {"Cast", "DequantizeLinear", "Reshape", "Mul", "ScatterND"} and (
            _is_looked_up(node.output[0], readers)
        ):
            return True
    return False


def _head_weights(model: onnx.ModelProto) -> frozenset[str]:
    """What the last product reads, where nothing but additions and shapes follows it."""
    producers = {output: node for node in model.graph.node for output in node.output}
    names: set[str] = set()
    wanted: list[str] = [output.name for output in model.graph.output]
    for name in wanted:  # grows while it is walked, from the output back
        node = producers.get(name)
        if node is None:
            names.add(name)
        elif node.op_type in _PRODUCTS:
            names |= _constants_of(node.input, producers)
        elif node.op_type in {"Add", "Squeeze", "Identity", "Cast", "Reshape", "Mul"}:
            wanted += node.input
    return frozenset(names)


def _constants_of(inputs: Sequence[str], producers: dict[str, onnx.NodeProto]) -> set[str]:
    """The initializers among the inputs, also behind operators that read nothing else."""
    found: set[str] = set()
    for name in inputs:
        node = producers.get(name)
        if node is None or node.op_type == "Constant":
            found.add(name)
        elif node.op_type == "DequantizeLinear" and node.input[0] not in producers:
            found |= set(node.input)
    return found


def totals(stored: Sequence[Stored], whole: int) -> dict[str, int]:
    """Bytes by component; overhead is all that is no weight, the graph itself included."""
    sizes: Counter[str] = Counter({"embeddings": 0, "encoder": 0, "head": 0})
    for each in stored:
        if each.component != "overhead":
            sizes[each.component] += each.size
    return {**sizes, "overhead": whole - sum(sizes.values())}
