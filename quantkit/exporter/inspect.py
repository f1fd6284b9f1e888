"""What an ONNX file really holds and what ONNX Runtime makes of it."""

import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from quantkit.onnx_file import file_bytes
from quantkit.runtime import import_onnxruntime, session_options

__all__ = [
    "Components",
    "bytes_by_component",
    "optimized_graph",
    "optimized_operators",
    "tensor_bytes",
]


@dataclass(frozen=True)
class Components:
    """Bytes of a file by component; `overhead` is the graph itself and small constants."""

    embeddings: int
    encoder: int
    head: int
    overhead: int

    @property
    def total(self) -> int:
        """Bytes of the whole file."""
        return self.embeddings + self.encoder + self.head + self.overhead


def bytes_by_component(path: Path) -> Components:
    """Bytes of a file's initializers, told apart by the module names they carry."""
    model = onnx.load(path)
    sizes = Counter({"embeddings": 0, "encoder": 0, "head": 0})
    for tensor in model.graph.initializer:
        sizes[_component(tensor.name)] += tensor_bytes(tensor)
    overhead = file_bytes(path) - sizes["embeddings"] - sizes["encoder"] - sizes["head"]
    return Components(sizes["embeddings"], sizes["encoder"], sizes["head"], overhead)


_HALF_BYTE = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of the numbers that a tensor holds."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTE:
        return math.ceil(count / 2)
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    width: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return count * width


# Linears that bring narrow embeddings to the encoder's width, of ALBERT and ELECTRA.
_PROJECTIONS = ("embedding_hidden_mapping_in", "embeddings_project")


def _component(name: str) -> str:
    parts = name.split(".")
    if "embeddings" in parts or any(part in _PROJECTIONS for part in parts):
        return "embeddings"
    if name.startswith("classifier"):
        return "head"
    return "encoder" if "." in name else "constant"


def optimized_operators(model: onnx.ModelProto) -> Mapping[str, int]:
    """Operators, by type, of the graph that the CPU provider runs after its optimisations."""
    graph = optimized_graph(model.SerializeToString()).graph
    return Counter(node.op_type for node in graph.node)


def optimized_graph(source: str | bytes) -> onnx.ModelProto:
    """The model that the CPU provider runs after its optimisations.

    Args:
        source: a file's path, or a serialized model.

    Raises:
        Exception: ONNX Runtime's own, which have no common base, where it refuses the model.
    """
    runtime = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        options = session_options()
        options.optimized_model_filepath = str(written)
        # A larger file than a message can be is written in two.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        options.log_severity_level = 4  # the exception says it
        runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return onnx.load(written)
