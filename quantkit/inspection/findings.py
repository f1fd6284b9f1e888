"""What is wrong with a file, in plain words."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from quantkit.inspection.products import Product
from quantkit.inspection.weights import Stored
from quantkit.onnx_file import CUDA

__all__ = ["findings"]

MB = 1e6
LARGE_SHARE = 0.2  # of a file


def findings(
    model: onnx.ModelProto,
    stored: Sequence[Stored],
    products: Sequence[Product],
    sizes: Mapping[str, int],
    host: Mapping[str, int],
    said: Mapping[str, str],
    refusal: str,
) -> list[str]:
    """One sentence for each problem, the costliest first.

    Args:
        model: as ONNX Runtime runs it.
        stored: the file's numbers.
        products: of `model`.
        sizes: bytes by component.
        host: operators without a CUDA kernel.
        said: the file's metadata.
        refusal: what ONNX Runtime said if it could not open the file.
    """
    whole = sum(sizes.values())
    found = []
    if refusal and said.get("quantkit.target") != "cuda-unpadded":  # which no CPU opens
        found.append(
            f"ONNX Runtime's CPU provider does not open the file ({refusal}); what follows is "
            f"read off the file as it is stored."
        )
    found += _float_products(products)
    found += _float_tables(stored, whole)
    found += _twice(stored)
    found += _inputs(model)
    if said.get("quantkit.target") == "portable":
        found += _zero_points(model)
    if host and said.get("quantkit.target") in CUDA:
        listed = ", ".join(f"{count} {name}" for name, count in host.items())
        found.append(f"On CUDA these operators would run on the host, with copies: {listed}.")
    return found


def _float_products(products: Sequence[Product]) -> list[str]:
    """Products that run in float although their weights are stored as integers."""
    linears = [product for product in products if product.weights]
    reasons = Counter(product.reason for product in linears if product.reason)
    found = [
        f"{count} of {len(linears)} products with weights run in float: {reason}."
        for reason, count in reasons.most_common()
    ]
    if linears and all(p.precision == "float" and not p.reason for p in linears):
        found.append(f"Nothing is quantized: all {len(linears)} products with weights are float.")
    return found


def _float_tables(stored: Sequence[Stored], whole: int) -> list[str]:
    """Embeddings that were left in float: most of what 4-bit tools leave behind."""
    tables = sum(each.size for each in stored if each.is_table and each.is_float)
    quantized = any(each.kind in {"int8", "uint8", "int4", "uint4"} for each in stored)
    if quantized and tables > LARGE_SHARE * whole:
        return [
            f"Embeddings are float: {tables / MB:.0f} MB of {whole / MB:.0f}."
            if whole > 10 * MB
            else f"Embeddings are float: {tables:,} bytes of {whole:,}."
        ]
    return []


def _twice(stored: Sequence[Stored]) -> list[str]:
    """Large tensors whose bytes the file holds more than once."""
    copies = defaultdict(list)
    for each in stored:
        if each.digest:
            copies[each.digest, each.kind, each.shape].append(each)
    again = [same[1:] for same in copies.values() if len(same) > 1]
    if not again:
        return []
    wasted = sum(each.size for same in again for each in same)
    example = again[0][0].name
    return [
        f"{sum(map(len, again))} tensors are stored more than once, {wasted:,} bytes in vain "
        f"(e.g. {example})."
    ]


def _zero_points(model: onnx.ModelProto) -> list[str]:
    """Inputs of a portable file that not every runtime takes."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    found = [numpy_helper.to_array(stored[node.input[2]]) for node in pairs]
    # ONNX Runtime itself makes uint8 around 128 of int8 around 0.
    shifted = sum(int(point) != (128 if point.dtype == np.uint8 else 0) for point in found)
    if not shifted:
        return []
    return [
        f"{shifted} inputs have a zero point: ONNX Runtime and OpenVINO take them, TensorRT does "
        f"not. For it, quantize with --target portable."
    ]


def _inputs(model: onnx.ModelProto) -> list[str]:
    """Operators that round their own inputs while they run."""
    counts = Counter(node.op_type for node in model.graph.node)
    found = []
    dynamic = counts["DynamicQuantizeLinear"] + counts["DynamicQuantizeMatMul"]
    if dynamic:
        found.append(
            f"{dynamic} inputs get one scale for the whole batch when they are computed: an answer "
            f"depends on the texts beside it and on padding."
        )
    levels = [
        next((a.i for a in node.attribute if a.name == "accuracy_level"), 0)
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    ]
    if rounded := levels.count(4):
        found.append(
            f"{rounded} of {len(levels)} MatMulNBits have accuracy_level 4: they round their "
            f"inputs to 8 bits themselves, which moves a product by about 1 % of its range."
        )
    return found
