"""The value of something in a graph that depends on constants only."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["constant_value"]


def constant_value(model: onnx.ModelProto, name: str) -> np.ndarray:
    """An initializer, or what operators make of initializers alone, by ONNX's own definition.

    The operators run in the reference evaluator of the `onnx` package, not in ONNX Runtime:
    what a runtime folds is to be held against this.
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
    (value,) = ReferenceEvaluator(part).run(None, {})
    return np.asarray(value)
