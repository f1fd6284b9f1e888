"""The BERT family as a graph: the closed form that every target's emitter fills in."""

from collections.abc import Mapping

import numpy as np
import onnx
from transformers import PreTrainedModel

from quantkit.checkpoint import label_names
from quantkit.encoder import EncoderPlan, LayerPlan, describe
from quantkit.exporter.cpu import CpuEmitter
from quantkit.exporter.graph import GraphWriter

__all__ = ["INPUTS", "attention_name", "build"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def attention_name(layer: LayerPlan) -> str:
    """Graph value with a layer's attention context, before its output projection."""
    return f"{layer.attention_output.linears[0]}/context"


def build(model: PreTrainedModel, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The ONNX model of a classifier, float or quantized, with dynamic batch and length."""
    plan, graph = describe(model), GraphWriter()
    emitter = CpuEmitter(graph, model)
    hidden = _embeddings(plan, graph, emitter)
    mask = graph.add("Cast", "attention_mask", to=onnx.TensorProto.INT32)
    for layer in plan.layers:
        hidden = _layer(layer, plan.heads, emitter, hidden, mask)
    first = graph.add("Gather", hidden, graph.constant("first", np.array(0)), axis=1)
    pooled = graph.add("Tanh", emitter.linear(plan.pooler, first))
    logits = emitter.linear(plan.classifier, pooled)
    graph.add("Identity", logits, name="logits")
    return graph.finish(
        dict.fromkeys(INPUTS, ("batch", "length")),
        "logits",
        ("batch", len(label_names(model))),
        metadata,
    )


def _embeddings(plan: EncoderPlan, graph: GraphWriter, emitter: CpuEmitter) -> str:
    length = graph.add("Shape", "input_ids", start=1, end=2)
    scalar = graph.add("Squeeze", length)
    positions = graph.add(
        "Range",
        graph.constant("zero", np.array(0)),
        scalar,
        graph.constant("one", np.array(1)),
    )
    words = emitter.embed(plan.word_embeddings, "input_ids")
    types = emitter.embed(plan.token_type_embeddings, "token_type_ids")
    places = emitter.embed(plan.position_embeddings, positions)
    # The same order of additions as transformers', so that the sums round alike.
    return emitter.norm(plan.embedding_norm, graph.add("Add", words, types), places)


def _layer(layer: LayerPlan, heads: int, emitter: CpuEmitter, hidden: str, mask: str) -> str:
    context = emitter.self_attention(
        layer.query_key_value, hidden, mask, heads, attention_name(layer)
    )
    projected = emitter.linear(layer.attention_output, context)
    hidden = emitter.norm(layer.attention_norm, projected, hidden)
    inner = emitter.activation(layer.activation, emitter.linear(layer.intermediate, hidden))
    return emitter.norm(layer.output_norm, emitter.linear(layer.output, inner), hidden)
