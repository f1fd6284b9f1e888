"""The first onnxruntime that opens a file, by what the file holds.

Each of these was found by opening files: the version before refuses them, or leaves a part of them
to the host. Files for CUDA were opened by its provider (`make test-cuda-provider`), without a GPU.
"""

import onnx
from onnx import TensorProto

from quantkit.exporter.graph import LENGTHS_OPSET

__all__ = ["least_onnxruntime"]

OPSET_20 = "1.17"
BLOCKS = "1.19"  # dequantized blocks of 4-bit integers
LOOKUPS = "1.20"  # of 4-bit rows
ATTENTION = "1.23"  # the standard's, of opset 23
OPSET_23 = "1.24"  # QuantizeLinear as it is there
UNPADDED = "1.24"  # on the CUDA provider; older ones were not tried
OPSET_24 = "1.27"  # Attention with numbers of tokens, and Cast, on the CUDA provider


def least_onnxruntime(model: onnx.ModelProto) -> str:
    """E.g. `1.17`, for files as this package writes them."""
    if any(entry.version == LENGTHS_OPSET for entry in model.opset_import if not entry.domain):
        return OPSET_24
    kinds = {node.op_type for node in model.graph.node}
    if "RemovePadding" in kinds:
        return UNPADDED
    if "Attention" in kinds:
        return OPSET_23 if "QuantizeLinear" in kinds else ATTENTION
    tensors = model.graph.initializer
    nibbles = {tensor.name for tensor in tensors if tensor.data_type == TensorProto.INT4}
    if not nibbles:
        return OPSET_20
    readers = {node.op_type for node in model.graph.node if nibbles.intersection(node.input)}
    return LOOKUPS if "GatherBlockQuantized" in readers else BLOCKS
