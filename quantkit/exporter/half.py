"""The gate of a file in half precision, where no GPU is at hand.

Kernels of the CPU provider compute the same graph in float32: that twin has to pass all three
tests. The file itself has to be the twin, number by number and operator by operator, rounded to
float16, and no operator of it may be left to the host. At last the CPU provider runs the file as
well, with float32 inside its operators and float16 between them; its answers are as near to the
model's as rounding every LayerNorm to half precision leaves them. What a GPU's own kernels make
of it is not seen here.

Of a file without padding (`cuda-unpadded`) the twin with padding passes all three tests. Its own
twin, and then the file, give the model's answers with the three operators that no CPU has as
functions of others.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from transformers import PreTrainedModel

from quantkit.errors import ParityError
from quantkit.exporter.batches import Arrays
from quantkit.exporter.bert import build
from quantkit.exporter.cuda_table import host_operators
from quantkit.exporter.gate import ParityResult, check_end, check_parity
from quantkit.exporter.unpadded import with_functions
from quantkit.onnx_file import Target

__all__ = ["check_cuda"]


def check_cuda(
    model: PreTrainedModel,
    proto: onnx.ModelProto,
    batches: Sequence[Arrays],
    target: Target = "cuda",
    *,
    threads: int | None = None,
) -> ParityResult:
    """Prove a file for the CUDA provider as far as CPU kernels can; what the twin showed.

    Args:
        model: as in `check_parity`.
        proto: the file.
        batches: as in `check_parity`.
        target: what the file was built for.
        threads: as in `check_parity`.

    Raises:
        ParityError: the file has operators without a CUDA kernel, is not its twin in half
            precision, or one of them does not compute the model's answers.
    """
    if host := host_operators(proto):
        listed = ", ".join(f"{count} {name}" for name, count in host.items())
        raise ParityError(
            f"The file would run on the host, with copies, at {listed}. It was not kept. Please "
            f"report this with the model's config.json."
        )
    twin = build(model, {}, target, single=True)
    if difference := _difference(proto, twin):
        raise ParityError(f"The file is not its float32 twin in half precision: {difference}.")
    if target == "cuda":
        result = check_parity(model, twin, batches, threads=threads)
    else:  # its inner values lie otherwise than the model's
        padded = build(model, {}, "cuda", single=True)
        result = check_parity(model, padded, batches, threads=threads)
        check_end(model, with_functions(twin), batches, half=False, threads=threads)
    half = check_end(model, with_functions(proto), batches, half=True, threads=threads)
    return replace(result, half_disagreements=half.disagreements, half_difference=half.size)


def _difference(half: onnx.ModelProto, single: onnx.ModelProto) -> str:
    """The first thing that is not the same but for the type of floats; "" if all is."""
    for node, other in zip(half.graph.node, single.graph.node, strict=True):
        if (node.op_type != "Cast" and node != other) or node.input != other.input:
            return f"operator {node.name}"
    for tensor, other_tensor in zip(half.graph.initializer, single.graph.initializer, strict=True):
        if tensor.data_type == other_tensor.data_type:
            if tensor.raw_data != other_tensor.raw_data:
                return f"tensor {tensor.name}"
            continue
        values = numpy_helper.to_array(other_tensor).astype(np.float16)
        if tensor.data_type != TensorProto.FLOAT16 or values.tobytes() != tensor.raw_data:
            return f"tensor {tensor.name}"
    return ""
