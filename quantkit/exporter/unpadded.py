"""The `cuda-unpadded` target: texts of different lengths one behind the other, without padding.

    x, lengths -> RemovePadding -> tokens [1, all tokens, width] -> layers -> ...

The three operators for that have kernels for CUDA alone. `with_functions` replaces them by
functions of standard operators, so that the rest of the file can be proven on a CPU.

How many tokens there are decides the shapes of all that follows, so it goes to the host once for
each batch, and no CUDA graph can be captured.
"""

from typing import ClassVar

import numpy as np
import onnx
from onnx import parser
from torch import nn

from quantkit.encoder import SharedInput
from quantkit.exporter.cuda import CudaEmitter
from quantkit.exporter.emitter import Attention
from quantkit.exporter.graph import CONTRIB, OPSET, GraphWriter

__all__ = ["UnpaddedEmitter", "with_functions"]

FUNCTIONS = "quantkit"  # domain
_HEADER = f'<domain: "{FUNCTIONS}", opset_import: ["" : {OPSET}, "{FUNCTIONS}" : 1]>'

# As onnxruntime's documentation of the operators has them (docs/ContribOperators.md, 1.31).
_REMOVE = """
RemovePadding (x, counts) => (tokens, offset, starts, longest)
{
    none = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    all = Constant <value_ints: ints = [-1]> ()
    zero32 = Cast <to = 6> (none)
    first32 = Squeeze (zero32)
    one32 = Cast <to = 6> (one)
    step32 = Squeeze (one32)
    length = Shape <start = 1, end = 2> (x)
    length32 = Cast <to = 6> (length)
    end32 = Squeeze (length32)
    place = Range (first32, end32, step32)
    column = Unsqueeze (counts, one)
    real = Less (place, column)
    flat = Reshape (real, all)
    padding = Not (flat)
    kept = NonZero (flat)
    kept_places = Squeeze (kept, none)
    others = NonZero (padding)
    other_places = Squeeze (others, none)
    order = Concat <axis = 0> (kept_places, other_places)
    sizes = Shape <start = 0, end = 2> (x)
    table = Reshape (order, sizes)
    offset = Cast <to = 6> (table)
    sums = CumSum (counts, first32)
    starts = Concat <axis = 0> (zero32, sums)
    width = Shape <start = 2> (x)
    rows_shape = Concat <axis = 0> (all, width)
    rows = Reshape (x, rows_shape)
    tokens = Gather (rows, kept_places)
    longest = ReduceMax <keepdims = 1> (counts)
}
"""
_RESTORE = """
RestorePadding (tokens, offset) => (y)
{
    none = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    all = Constant <value_ints: ints = [-1]> ()
    offset64 = Cast <to = 7> (offset)
    order = Reshape (offset64, all)
    count = Shape <start = 0, end = 1> (tokens)
    kept_places = Slice (order, none, count)
    indices = Unsqueeze (kept_places, one)
    nothing = Constant <value_float: float = 0.0> ()
    nothing_alike = CastLike (nothing, tokens)
    rows = Shape (order)
    width = Shape <start = 1> (tokens)
    rows_shape = Concat <axis = 0> (rows, width)
    empty = Expand (nothing_alike, rows_shape)
    filled = ScatterND (empty, indices, tokens)
    sizes = Shape (offset)
    y_shape = Concat <axis = 0> (sizes, width)
    y = Reshape (filled, y_shape)
}
"""
_ATTENTION = f"""
PackedMultiHeadAttention <num_heads> (query, key, value, bias, offset, starts) => (y)
{{
    none = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    all = Constant <value_ints: ints = [-1]> ()
    many = Constant <value_ints: ints = [9223372036854775807]> ()
    heads = Constant <value_int: int = @num_heads> ()
    heads_row = Unsqueeze (heads, none)
    apart = Concat <axis = 0> (none, none, heads_row, all)
    q = {FUNCTIONS}.RestorePadding (query, offset)
    k = {FUNCTIONS}.RestorePadding (key, offset)
    v = {FUNCTIONS}.RestorePadding (value, offset)
    q_apart = Reshape (q, apart)
    k_apart = Reshape (k, apart)
    v_apart = Reshape (v, apart)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_apart)
    k_turned = Transpose <perm = [0, 2, 3, 1]> (k_apart)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_apart)
    size = Shape <start = 3> (q_apart)
    size_alike = CastLike (size, query)
    root = Sqrt (size_alike)
    products = MatMul (q_heads, k_turned)
    scores = Div (products, root)
    begins = Slice (starts, none, all)
    ends = Slice (starts, one, many)
    counts = Sub (ends, begins)
    column_axes = Constant <value_ints: ints = [1, 2, 3]> ()
    column = Unsqueeze (counts, column_axes)
    length = Shape <start = 1> (offset)
    length32 = Cast <to = 6> (length)
    zero32 = Cast <to = 6> (none)
    one32 = Cast <to = 6> (one)
    first32 = Squeeze (zero32)
    step32 = Squeeze (one32)
    end32 = Squeeze (length32)
    place = Range (first32, end32, step32)
    real = Less (place, column)
    least = Constant <value_float: float = -65504.0> ()
    least_alike = CastLike (least, query)
    masked = Where (real, scores, least_alike)
    shares = Softmax <axis = -1> (masked)
    context = MatMul (shares, v_heads)
    tokens_first = Transpose <perm = [0, 2, 1, 3]> (context)
    width = Shape <start = 1> (query)
    rows_shape = Concat <axis = 0> (all, width)
    rows = Reshape (tokens_first, rows_shape)
    offset64 = Cast <to = 7> (offset)
    order = Reshape (offset64, all)
    count = Shape <start = 0, end = 1> (query)
    kept_places = Slice (order, none, count)
    y = Gather (rows, kept_places)
}}
"""
_NAMES = ("RemovePadding", "RestorePadding", "PackedMultiHeadAttention")


class UnpaddedEmitter(CudaEmitter):
    """Writes a model as `CudaEmitter` does, over the tokens of all texts in one row."""

    target: ClassVar[str] = "cuda-unpadded"

    def __init__(self, graph: GraphWriter, model: nn.Module, *, single: bool = False) -> None:
        super().__init__(graph, model, single=single)
        self._offset = self._starts = ""  # where tokens come from, and where texts begin

    def mask(self, name: str) -> str:
        """How many tokens of each text the input `name` shows, int32 [batch]."""
        return self._graph.add("Cast", super().mask(name), to=onnx.TensorProto.INT32)

    def unpadded(self, x: str, mask: str) -> str:
        """The tokens of `x` [batch, length, width] alone: [1, all tokens, width]."""
        tokens, self._offset, self._starts, _ = self._graph.add_many(
            "RemovePadding", x, mask, names=["", "", "", ""], domain=CONTRIB
        )
        return self._row(tokens)

    def padded(self, x: str) -> str:
        """[1, all tokens, width] as [batch, length, width], 0 where there is no token."""
        tokens = self._graph.add("Squeeze", x, self._axis(0))
        return self._graph.add("RestorePadding", tokens, self._offset, domain=CONTRIB)

    def self_attention(self, shared: SharedInput, x: str, attention: Attention) -> str:
        """Softmax attention within each text of `x`; all tokens attend, and then one is taken."""
        parts = self.query_key_value(shared, x, first_only=False)
        context = self._graph.add(
            "PackedMultiHeadAttention",
            *(self._graph.add("Squeeze", part, self._axis(0)) for part in parts),
            "",  # no bias: it is in the product
            self._offset,
            self._starts,
            domain=CONTRIB,
            num_heads=attention.heads,
        )
        if not attention.first_only:
            return self._row(context, attention.name)
        return self.first_token(self._row(context))

    def first_token(self, x: str, axis: int = 1) -> str:
        """The first token of each text of `x`: [batch, 1, width]."""
        first, last = self._axis(0), self._graph.constant("but_last", np.array([-1]))
        begins = self._graph.add("Slice", self._starts, first, last)
        tokens = self._graph.add("Squeeze", x, first)
        return self._graph.add(
            "Unsqueeze", self._graph.add("Gather", tokens, begins), self._axis(axis)
        )

    def _row(self, tokens: str, name: str = "") -> str:
        """Three axes, as with padding: a product over two would become a Gemm, without fusions."""
        return self._graph.add("Unsqueeze", tokens, self._axis(0), name=name)

    def _axis(self, number: int) -> str:
        return self._graph.constant(f"axis_{number}", np.array([number]))


def with_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which what has kernels for CUDA alone is a function of standard operators."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    replaced = [node for node in copy.graph.node if node.op_type in _NAMES]
    for node in replaced:
        node.domain = FUNCTIONS
    if replaced:
        copy.functions.extend(
            parser.parse_function(f"{_HEADER}{text}") for text in (_REMOVE, _RESTORE, _ATTENTION)
        )
        copy.opset_import.append(onnx.helper.make_opsetid(FUNCTIONS, 1))
    return copy
