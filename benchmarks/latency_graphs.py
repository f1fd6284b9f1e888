"""Other ways to write quantkit's BERT graph, made of the file that it writes.

Each takes the file for CPUs (`int8`) and changes one decision of it. Some are bounds, not
candidates: they leave something out that the answers need, to show what it costs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["BOUNDS", "CONTRIB", "GRAPHS", "apart", "constant", "fused", "heads_of", "width_of"]

CONTRIB = "com.microsoft"
BOUNDS = (
    "no mask",
    "integer attention",
    "no smoothing",
    "no smoothing after GELU",
    "tanh GELU",
)

Rewrite = Callable[[NodeProto], Sequence[NodeProto]]


def _rewritten(
    model: onnx.ModelProto, rewrite: Rewrite, before: Sequence[NodeProto] = ()
) -> onnx.ModelProto:
    nodes = [*before, *(new for node in model.graph.node for new in rewrite(node))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def constant(model: onnx.ModelProto, name: str, value: object) -> str:
    """An initializer of that name, made if it is not there."""
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def apart(node: NodeProto) -> tuple[list[NodeProto], list[str]]:
    """The product and `Split` that a QAttention stands for, and query, key and value."""
    codes, weight, bias, scale, weight_scale, _, zero_point = node.input[:7]
    merged = f"{node.name}/merged"
    inputs = [codes, weight, scale, weight_scale, zero_point, "", bias]
    parts = [f"{node.name}/{part}" for part in ("query", "key", "value")]
    return [
        helper.make_node("MatMulIntegerToFloat", inputs, [merged], domain=CONTRIB),
        helper.make_node("Split", [merged], parts, axis=-1, num_outputs=3),
    ], parts


def heads_of(node: NodeProto) -> int:
    """Of an attention operator."""
    return next(int(each.i) for each in node.attribute if each.name == "num_heads")


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Product, `Split` and attention as one `QAttention`, which the others below are made of.

    All tokens attend, and of the last layer's the first are picked behind it.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    mask = helper.make_node("Cast", ["attention_mask"], ["mask_32"], to=TensorProto.INT32)
    zero = constant(model, "weight_zero_point", np.int8(0))

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type != "Attention":
            return [node]
        query, key = (makers[name] for name in node.input[:2])
        codes, weight, scale, weight_scale, zero_point, _, bias = makers[key.input[0]].input
        inputs = [codes, weight, bias, scale, weight_scale, "mask_32", zero_point, zero]
        heads = next(int(each.i) for each in node.attribute if each.name == "q_num_heads")
        whole = query.op_type == "Split"
        made = node.output[0] if whole else f"{node.name}/all"
        attend = helper.make_node(
            "QAttention", inputs, [made], name=node.name, domain=CONTRIB, num_heads=heads
        )
        first = helper.make_node("Gather", [made, "first"], node.output, axis=1)
        return [attend] if whole else [attend, first]

    return _pruned(_rewritten(model, rewrite, [mask]))


def _pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the nodes that nothing reads."""
    read, kept = {output.name for output in model.graph.output}, []
    for node in reversed(model.graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    return model


def multi_head(model: onnx.ModelProto, *, masked: bool = True) -> onnx.ModelProto:
    """Product, `Split` and `MultiHeadAttention` apart; without a mask it is flash attention."""

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type != "QAttention":
            return [node]
        nodes, parts = apart(node)
        inputs = [*parts, "", node.input[5]] if masked else parts
        attend = helper.make_node(
            "MultiHeadAttention", inputs, node.output, domain=CONTRIB, num_heads=heads_of(node)
        )
        return [*nodes, attend]

    return _rewritten(model, rewrite)


def plain_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Attention of the standard's products and `Softmax`, heads copied apart and together."""
    mask = [
        helper.make_node("Cast", ["attention_mask"], ["words"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["words", constant(model, "a1", [1, 2])], ["row"]),
        helper.make_node(
            "Where",
            ["row", constant(model, "a2", np.float32(0)), constant(model, "a3", np.float32(-3e38))],
            ["row_mask"],
        ),
    ]

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type != "QAttention":
            return [node]
        nodes, parts = apart(node)
        heads, width = heads_of(node), width_of(model, node)
        query, key, value = heads_apart(model, nodes, parts, heads)
        add = adder(nodes, node.name)
        factor = constant(model, "a4", np.float32((width // heads) ** -0.5))
        scores = add("Mul", add("MatMul", query, key), factor)
        shares = add("Softmax", add("Add", scores, "row_mask"), axis=-1)
        moved = add("Transpose", add("MatMul", shares, value), perm=(0, 2, 1, 3))
        together = constant(model, "together", [0, 0, width])
        return [*nodes, helper.make_node("Reshape", [moved, together], node.output)]

    return _rewritten(model, rewrite, mask)


def adder(nodes: list[NodeProto], name: str) -> Callable[..., str]:
    """What appends an operator of one output to `nodes` and names its value."""

    def add(operator: str, *inputs: str, domain: str = "", **more: Any) -> str:  # noqa: ANN401
        made = f"{name}/{operator}{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [made], domain=domain, **more))
        return made

    return add


def heads_apart(
    model: onnx.ModelProto, nodes: list[NodeProto], parts: Sequence[str], heads: int
) -> list[str]:
    """Query and value [batch, heads, length, width of a head], the key turned in between."""
    add, split = adder(nodes, parts[0]), constant(model, "split", [0, 0, heads, -1])
    orders = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    return [
        add("Transpose", add("Reshape", part, split), perm=order)
        for part, order in zip(parts, orders, strict=True)
    ]


def all_tokens(model: onnx.ModelProto) -> onnx.ModelProto:
    """The last layer computed for all tokens, of which the head reads the first."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    (last,) = norms[-1].output
    same: dict[str, str] = {}

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        if node.op_type == "Gather" and node.input[1] == "first":
            same[node.output[0]] = node.input[0]
            return []
        if node.output[0] != last:
            return [node]
        same[last] = f"{last}/first"
        return [node, helper.make_node("Gather", [last, "first"], [same[last]], axis=1)]

    return _rewritten(model, rewrite)


def integer_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Both products of attention on 8-bit codes with fixed scales: what they would save."""
    mask = [
        helper.make_node("Cast", ["attention_mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["ones", constant(model, "b1", np.float32(1))], ["holes"]),
        helper.make_node("Mul", ["holes", constant(model, "b2", np.float32(1e4))], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", constant(model, "b3", [1, 2])], ["row"]),
    ]
    scale, share = (constant(model, n, np.float32(v)) for n, v in (("b4", 0.05), ("b5", 1 / 255)))
    unsigned, signed = (
        constant(model, n, v) for n, v in (("b6", np.uint8(128)), ("b7", np.int8(0)))
    )
    zero = constant(model, "b8", np.uint8(0))

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type != "QAttention":
            return [node]
        nodes, parts = apart(node)
        add = adder(nodes, node.name)
        points = (unsigned, signed, signed)
        codes = [
            add("QuantizeLinear", part, scale, point)
            for part, point in zip(parts, points, strict=True)
        ]
        query, key, value = heads_apart(model, nodes, codes, heads_of(node))
        product = "MatMulIntegerToFloat"
        scores = add(product, query, key, scale, scale, unsigned, signed, domain=CONTRIB)
        shares = add("Softmax", add("Add", scores, "row"), axis=-1)
        shares = add("QuantizeLinear", shares, share, zero)
        context = add(product, shares, value, share, scale, zero, signed, domain=CONTRIB)
        moved = add("Transpose", context, perm=(0, 2, 1, 3))
        together = constant(model, "together", [0, 0, width_of(model, node)])
        return [*nodes, helper.make_node("Reshape", [moved, together], node.output)]

    return _rewritten(model, rewrite, mask)


def width_of(model: onnx.ModelProto, node: NodeProto) -> int:
    """Of the hidden states that a QAttention reads."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return int(shapes[node.input[1]][1]) // 3


def skip_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """`SkipLayerNormalization` for `Add` and `LayerNormalization`."""
    makers = {node.output[0]: node for node in model.graph.node}
    norms = [
        node
        for node in model.graph.node
        if node.op_type == "LayerNormalization" and "embeddings" not in node.name
    ]
    sums = {node.input[0] for node in norms}

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        if node.output[0] in sums:
            return []
        if node.op_type != "LayerNormalization" or node.input[0] not in sums:
            return [node]
        inputs = [*makers[node.input[0]].input, *node.input[1:]]
        return [
            helper.make_node(
                "SkipLayerNormalization", inputs, node.output, domain=CONTRIB, epsilon=1e-12
            )
        ]

    return _rewritten(model, rewrite)


def dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs quantized by each batch's own range."""
    scales: dict[str, tuple[str, str]] = {}

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        if node.op_type == "QuantizeLinear":
            (codes,) = node.output
            scales[codes] = f"{codes}/scale", f"{codes}/zero"
            made = [codes, *scales[codes]]
            return [helper.make_node("DynamicQuantizeLinear", node.input[:1], made)]
        places = {"QAttention": (3, 6), "MatMulIntegerToFloat": (2, 4)}.get(node.op_type)
        if places is not None:
            for place, value in zip(places, scales[node.input[0]], strict=True):
                node.input[place] = value
        return [node]

    return _rewritten(model, rewrite)


def no_smoothing(model: onnx.ModelProto, after: str | None = None) -> onnx.ModelProto:
    """Without the multiplications of smoothing that no earlier weight could take.

    `after`: only those of what that operator makes.
    """
    same: dict[str, str] = {}
    makers = {node.output[0]: node.op_type for node in model.graph.node}

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        smoothing = any(name.endswith(".input.multiplier") for name in node.input)
        if smoothing and after in (None, makers.get(node.input[0])):
            same[node.output[0]] = node.input[0]
            return []
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        return [node]

    return _rewritten(model, rewrite)


def scaled_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """A second LayerNormalization, gamma and beta scaled, for each `Mul` after one."""
    makers = {node.output[0]: node for node in model.graph.node}
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}

    def rewrite(node: NodeProto) -> Sequence[NodeProto]:
        vector = next((name for name in node.input if name.endswith(".input.multiplier")), None)
        maker = makers.get(node.input[0]) if node.input else None
        if vector is None or maker is None or maker.op_type != "LayerNormalization":
            return [node]
        (made,) = node.output
        scaled = [
            constant(model, f"{made}/{at}", stored[maker.input[at]] * stored[vector])
            for at in (1, 2)
        ]
        norm = helper.make_node(maker.op_type, [maker.input[0], *scaled], [made])
        norm.attribute.extend(maker.attribute)
        return [norm]

    return _rewritten(model, rewrite)


def tanh_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The approximate GELU, which is another function."""
    for node in model.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "tanh"))
    return model


GRAPHS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "all tokens in the last layer": all_tokens,
    "QAttention": fused,
    "MultiHeadAttention": lambda model: multi_head(fused(model)),
    "plain operators": lambda model: plain_attention(fused(model)),
    "no mask": lambda model: multi_head(fused(model), masked=False),
    "integer attention": lambda model: integer_attention(fused(model)),
    "SkipLayerNormalization": skip_norm,
    "dynamic ranges": dynamic,
    "scaled LayerNormalization": scaled_norm,
    "no smoothing": no_smoothing,
    "no smoothing after GELU": lambda model: no_smoothing(model, after="Gelu"),
    "tanh GELU": tanh_gelu,
}
