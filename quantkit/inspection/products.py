"""The matrix products of a graph: which run in integers, and why the others do not.

What is judged is the graph that ONNX Runtime runs after its optimisations. It decides there
whether pairs of QuantizeLinear and DequantizeLinear become an integer kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import TensorProto

__all__ = ["Product", "products_of"]

Precision = Literal["int8", "4-bit", "8-bit weights", "float"]

_INTEGER_NAMES = """
MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul QGemm QAttention
QOrderedMatMul QOrderedAttention
"""
_INTEGER = frozenset(_INTEGER_NAMES.split())
_FLOAT = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention", "GemmFastGelu"})
# Where the second factor stands, if not next to the first.
_SECOND = {"QLinearMatMul": 3, "QGemm": 3, "QOrderedMatMul": 2}
_PASSED = frozenset({"Cast", "Transpose", "Reshape", "Identity"})


@dataclass(frozen=True)
class Product:
    """One product with stored weights, or of two computed tensors."""

    name: str
    operator: str
    precision: Precision
    weights: bool  # one side is stored: a Linear; else it belongs to attention
    reason: str = ""  # why it runs in float although its weights are integers


def products_of(model: onnx.ModelProto, source: onnx.ModelProto) -> list[Product]:
    """The products of an optimized `model`, made of the file `source`."""
    graph = _Graph(model)
    # Weights that the file holds as integers and the runtime has turned into floats at load.
    kinds = {tensor.data_type for tensor in source.graph.initializer if len(tensor.dims) >= 2}
    integers = kinds & {TensorProto.INT4, TensorProto.INT8, TensorProto.UINT8, TensorProto.UINT4}
    stored_floats = {tensor.name for tensor in source.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in _INTEGER:
            found.append(Product(node.name, node.op_type, "int8", graph.has_weight(node)))
        elif node.op_type == "MatMulNBits":
            found.append(Product(node.name, node.op_type, _width(node), True))
        elif node.op_type in _FLOAT:
            reason = graph.why_float(node, folded=bool(integers), stored=stored_floats)
            weights = graph.has_weight(node)
            found.append(Product(node.name, node.op_type, "float", weights, reason))
    return found


def _width(node: onnx.NodeProto) -> Precision:
    bits = next((a.i for a in node.attribute if a.name == "bits"), 4)
    return "4-bit" if bits == 4 else "8-bit weights"


class _Graph:
    """What the products' inputs are made of."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._stored: Mapping[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self._made = {output: node for node in model.graph.node for output in node.output}

    def has_weight(self, node: onnx.NodeProto) -> bool:
        """Whether one side is stored in the file."""
        return any(self._origin(name) is not None for name in self._sides(node))

    def why_float(self, node: onnx.NodeProto, *, folded: bool, stored: set[str]) -> str:
        """Why integers are multiplied as floats; nothing where the file holds floats."""
        pairs = [self._made.get(name) for name in self._sides(node)]
        dequantized = [each for each in pairs if each and each.op_type == "DequantizeLinear"]
        weights = [each for each in dequantized if each.input[0] in self._stored]
        if weights:
            tensor = self._stored[weights[0].input[0]]
            if tensor.data_type in {TensorProto.INT4, TensorProto.UINT4}:
                return "4-bit weights are dequantized on every call: no kernel takes this pattern"
            if len(dequantized) < 2:
                return "its inputs are float: only the weights are quantized"
            if node.op_type == "Gemm":
                return (
                    "static QDQ with a bias on an input of two or of fixed axes became a float "
                    "Gemm before the pattern was looked for; weights are dequantized on every call"
                )
            return "the pairs around it match no integer kernel of ONNX Runtime"
        for name in self._sides(node):
            if (
                (tensor_ := self._origin(name)) is not None
                and folded
                and tensor_.name not in stored
            ):
                return "its weights were turned into floats when the file was loaded"
        return ""

    def _sides(self, node: onnx.NodeProto) -> Sequence[str]:
        """The two factors."""
        return [node.input[0], node.input[_SECOND.get(node.op_type, 1)]]

    def _origin(self, name: str) -> TensorProto | None:
        """The tensor that a value is, behind casts and the like."""
        while name not in self._stored:
            node = self._made.get(name)
            if node is None or not (node.op_type in _PASSED or node.op_type == "DequantizeLinear"):
                return None
            name = node.input[0]
        return self._stored[name]
