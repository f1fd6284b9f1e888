"""The value of something in a graph that depends on constants only."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["constant_value"]


class QLinearConv(OpRun):
    """The convolution that multiplies each channel by one number.

    The evaluator's own takes a step of Python per channel, and a model has millions.
    """

    op_domain = ""

    def _run(self, *inputs: Any, **settings: Any) -> tuple[np.ndarray]:  # noqa: ANN401
        x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = inputs
        if w.shape != (x.shape[1], 1, 1) or settings["group"] != len(w):
            raise NotImplementedError(f"a convolution of {x.shape} with {w.shape} is no constant")
        # In float64, where products of 8-bit numbers are exact.
        left, right = (np.float64(x) - x_zero) * x_scale, (np.float64(w) - w_zero) * w_scale
        product = np.rint(left * right[:, 0] / scale) + zero
        ends = np.iinfo(zero.dtype)
        return (np.clip(product, ends.min, ends.max).astype(zero.dtype),)


def constant_value(model: onnx.ModelProto, name: str) -> np.ndarray:
    """An initializer, or what operators make of initializers alone, by ONNX's own definition.

    The operators run in the reference evaluator of the `onnx` package, not in ONNX Runtime:
    what a runtime folds is to be held against this. (`QLinearConv` is our own, for speed.)
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if name in stored:
        return np.asarray(numpy_helper.to_array(stored[name]))
    producers = {output: node for node in model.graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    read: dict[str, onnx.TensorProto] = {}
    wanted = [name]
    for value in wanted:  # grows while it is walked: the producers, last one first
        if value in stored:
            read[value] = stored[value]
        else:
            nodes.insert(0, producers[value])
            wanted += producers[value].input
    output = helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
    graph = helper.make_graph(nodes, "constants", [], [output], list(read.values()))
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    (value,) = ReferenceEvaluator(part, new_ops=[QLinearConv]).run(None, {})
    return np.asarray(value)
