"""quantkit's BERT graph with hidden states as [length, batch, hidden].

Products of heads then read them where they lie, by strides (`FusedMatMul`), instead of as copies
with the heads apart; only the result of attention is still put together. For a text at a time the
two orders are one, so that turning the ids is all that the rest of the graph needs.
"""

from typing import Any

import numpy as np
import onnx
from latency_graphs import CONTRIB, apart, constant, heads_of, width_of
from onnx import NodeProto, TensorProto, helper

__all__ = ["tokens_first"]

IDS = ("input_ids", "token_type_ids")


class _Nodes(list[NodeProto]):
    """Nodes in order, each with one output."""

    def put(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:  # noqa: ANN401
        self.append(helper.make_node(operator, inputs, [output], **attributes))
        return output


def tokens_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """A file of `QAttention`, rewritten; the same answers."""
    nodes = _Nodes()
    _before(model, nodes)
    for node in model.graph.node:
        if node.op_type == "QAttention":
            _attention(model, node, nodes)
            continue
        if node.op_type == "Gather":
            _turn_gather(node)
        if node.op_type == "Squeeze" and node.output[0] != "logits" and len(node.input) > 1:
            node.input[1] = constant(model, "first_axis", [0])
        nodes.append(node)
        if node.op_type == "Slice":  # places, one for each token and all texts
            (places,) = node.output
            node.output[0] = f"{places}/flat"
            nodes.put("Unsqueeze", [node.output[0], constant(model, "text_axis", [1])], places)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _before(model: onnx.ModelProto, nodes: _Nodes) -> None:
    """The turned ids, the mask as what is added to scores, and the shapes that change."""
    for name in IDS:
        nodes.put("Transpose", [name], f"{name}/turned", perm=[1, 0])
    zero, least = (constant(model, f"add{v:g}", np.float32(v)) for v in (0.0, -3e38))
    words = nodes.put("Cast", ["attention_mask"], "words", to=TensorProto.BOOL)
    row = nodes.put("Unsqueeze", [words, constant(model, "row_axes", [1, 2])], "row")
    nodes.put("Where", [row, zero, least], "row_mask")
    tokens = nodes.put("Shape", ["input_ids"], "tokens", start=1, end=2)
    texts = nodes.put("Shape", ["input_ids"], "texts", start=0, end=1)
    node = next(node for node in model.graph.node if node.op_type == "QAttention")
    heads, rest = constant(model, "heads", [heads_of(node)]), constant(model, "rest", [-1])
    width = constant(model, "width", [width_of(model, node)])
    nodes.put("Concat", [texts, heads, tokens, tokens], "scores_shape", axis=0)
    nodes.put("Concat", [rest, tokens, tokens], "shares_shape", axis=0)
    nodes.put("Concat", [tokens, texts, width], "hidden_shape", axis=0)


def _turn_gather(node: NodeProto) -> None:
    """Rows of turned ids, and the first token along the first axis."""
    if node.input[1] in IDS:
        node.input[1] = f"{node.input[1]}/turned"
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = 0


def _attention(model: onnx.ModelProto, node: NodeProto, nodes: _Nodes) -> None:
    """Attention by strided products over [length, texts * heads, width of a head]."""
    made, parts = apart(node)
    nodes.extend(made)
    size = width_of(model, node) // heads_of(node)
    shape = constant(model, "heads_shape", [0, -1, size])
    name = node.name
    query, key, value = (nodes.put("Reshape", [part, shape], f"{part}/heads") for part in parts)
    turned: dict[str, Any] = {"domain": CONTRIB, "transBatchB": 1}
    scores = nodes.put(
        "FusedMatMul",
        [query, key],
        f"{name}/scores",
        transBatchA=1,
        transB=1,
        alpha=size**-0.5,
        **turned,
    )
    scores = nodes.put("Reshape", [scores, "scores_shape"], f"{name}/by_text")
    shares = nodes.put("Add", [scores, "row_mask"], f"{name}/masked")
    shares = nodes.put("Softmax", [shares], f"{name}/by_head", axis=-1)
    shares = nodes.put("Reshape", [shares, "shares_shape"], f"{name}/shares")
    context = nodes.put("FusedMatMul", [shares, value], f"{name}/context", **turned)
    context = nodes.put("Transpose", [context], f"{name}/turned", perm=[1, 0, 2])
    nodes.put("Reshape", [context, "hidden_shape"], node.output[0])
