"""A small writer of ONNX graphs: nodes in order, named initializers, no inference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantkit.exporter.saving import check_model

__all__ = ["CONTRIB", "LENGTHS_OPSET", "OPSET", "GraphWriter"]

OPSET = 20  # Gelu as one operator
IR_VERSION = 9
# 4-bit integers as a type of their own.
NIBBLE_OPSET = 21
NIBBLE_IR_VERSION = 10
# Attention as one operator of the standard.
ATTENTION_OPSET = 23
ATTENTION_IR_VERSION = 11
# The same with numbers of tokens, its seventh input.
LENGTHS_OPSET = 24
CONTRIB = "com.microsoft"


class GraphWriter:
    """Collects nodes and initializers; every value is known by its name.

    Nodes are written in the order of computation, so the graph is sorted as it stands.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._unnamed = 0

    def add(
        self,
        operator: str,
        *inputs: str,
        name: str = "",
        domain: str = "",
        **attributes: Any,  # noqa: ANN401
    ) -> str:
        """Append a node of one output and return that output's name; "" leaves an input out."""
        return self.add_many(operator, *inputs, names=[name], domain=domain, **attributes)[0]

    def add_many(
        self,
        operator: str,
        *inputs: str,
        names: Sequence[str],
        domain: str = "",
        **attributes: Any,  # noqa: ANN401
    ) -> list[str]:
        """Append a node of several outputs; an empty name is made up."""
        outputs = [name or self._fresh(operator) for name in names]
        node = helper.make_node(
            operator, list(inputs), outputs, name=outputs[0], domain=domain, **attributes
        )
        self._nodes.append(node)
        return outputs

    def constant(self, name: str, values: "np.ndarray | np.generic") -> str:
        """Add an initializer once; a second call with the same name reuses it."""
        if name not in self._initializers:
            # Not ascontiguousarray, which would make a scalar one-dimensional.
            packed = np.array(values, order="C")
            self._initializers[name] = numpy_helper.from_array(packed, name)
        return name

    def nibbles(self, name: str, values: np.ndarray) -> str:
        """Add an INT4 initializer of values in -8..7, once: two to a byte, low nibble first."""
        if name not in self._initializers:
            flat = values.astype(np.uint8).ravel() & 0x0F
            flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
            packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
            self._initializers[name] = helper.make_tensor(
                name, TensorProto.INT4, values.shape, packed, raw=True
            )
        return name

    @property
    def has_nibbles(self) -> bool:
        """Whether any initializer is of four bits, which takes a newer operator set."""
        kinds = (tensor.data_type for tensor in self._initializers.values())
        return any(kind == TensorProto.INT4 for kind in kinds)

    def finish(
        self,
        inputs: Mapping[str, Sequence[str]],
        output: str,
        output_shape: Sequence[str | int],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The checked model: int64 inputs with the given dimension names, one float output."""
        graph = helper.make_graph(
            self._nodes,
            "quantkit",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, list(shape))
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(output_shape))],
            list(self._initializers.values()),
        )
        domains = {node.domain for node in self._nodes} - {""}
        opset, ir_version = self._versions()
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)]
            + [helper.make_opsetid(domain, 1) for domain in sorted(domains)],
            ir_version=ir_version,
            producer_name="quantkit",
        )
        helper.set_model_props(model, dict(metadata))
        check_model(model)
        return model

    def _versions(self) -> tuple[int, int]:
        """The oldest operator set and format that know all that the graph uses."""
        attention = [node for node in self._nodes if node.op_type == "Attention"]
        if any(len(node.input) > 6 for node in attention):
            return LENGTHS_OPSET, ATTENTION_IR_VERSION
        if attention:
            return ATTENTION_OPSET, ATTENTION_IR_VERSION
        if self.has_nibbles:
            return NIBBLE_OPSET, NIBBLE_IR_VERSION
        return OPSET, IR_VERSION

    def _fresh(self, operator: str) -> str:
        self._unnamed += 1
        return f"{operator}_{self._unnamed}"
