"""One ONNX file under inspection, whoever made it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from quantkit.errors import CheckpointError
from quantkit.exporter.cuda_table import host_operators
from quantkit.exporter.inspect import optimized_graph
from quantkit.inspection.findings import findings
from quantkit.inspection.products import Product, products_of
from quantkit.inspection.weights import Stored, stored_numbers, totals
from quantkit.onnx_file import file_bytes

__all__ = ["Inspection", "inspect_file"]


@dataclass(frozen=True)
class Inspection:
    """What was found.

    operators    by type, in the graph that ONNX Runtime runs on a CPU; as stored where it cannot
    products     of weights and of attention, in that graph
    bytes        by component: embeddings, encoder, head, overhead
    kinds        bytes by element type
    host_only    operators that the CUDA provider would leave to the host
    problems     what is wrong, in plain words; none is a good sign
    """

    file: str
    size: int
    made_by: str
    opset: Mapping[str, int]
    ir_version: int
    target: str
    least_onnxruntime: str
    narrow: str
    operators: Mapping[str, int]
    products: Sequence[Product]
    bytes: Mapping[str, int]
    kinds: Mapping[str, int]
    host_only: Mapping[str, int]
    problems: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def inspect_file(path: Path) -> Inspection:
    """Read a file, let ONNX Runtime optimize it, and judge both.

    Raises:
        CheckpointError: it is not there, or no ONNX file.
    """
    model = _read(path)
    stored = stored_numbers(model)
    optimized, refusal = _optimized(path)
    seen = optimized or model
    products = products_of(seen, model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    host = dict(host_operators(model))
    sizes = totals(stored, file_bytes(path))
    return Inspection(
        file=str(path),
        size=file_bytes(path),
        made_by=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opset={each.domain or "ai.onnx": each.version for each in model.opset_import},
        ir_version=model.ir_version,
        target=said.get("quantkit.target", ""),
        least_onnxruntime=said.get("quantkit.least_onnxruntime", ""),
        narrow=said.get("quantkit.narrow", ""),
        operators=dict(Counter(node.op_type for node in seen.graph.node).most_common()),
        products=products,
        bytes=sizes,
        kinds=_kinds(stored),
        host_only=host,
        problems=findings(seen, stored, products, sizes, host, said, refusal),
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except FileNotFoundError as problem:
        missing = problem.filename or path
        raise CheckpointError(
            f"{missing}: no such file. quantkit inspect takes an .onnx file, with its tensors "
            f"beside it if they lie in a file of their own."
        ) from None
    except (DecodeError, IsADirectoryError, onnx.checker.ValidationError) as problem:
        raise CheckpointError(f"{path} is no ONNX file ({problem}).") from None
    if not model.ir_version or not model.graph.node:
        raise CheckpointError(
            f"{path} is no ONNX file, or holds no operator. quantkit inspect takes an .onnx file."
        )
    return model


def _optimized(path: Path) -> tuple[onnx.ModelProto | None, str]:
    """The graph that the CPU provider runs, or what ONNX Runtime says where it refuses."""
    try:
        return optimized_graph(str(path)), ""
    except Exception as problem:  # onnxruntime raises classes of its own, without a base
        return None, str(problem).splitlines()[0]


def _kinds(stored: Sequence[Stored]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for each in stored:
        sizes[each.kind] += each.size
    return dict(sizes.most_common())
