"""The BERT family as a graph: the closed form that every target's emitter fills in."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx
from torch import nn
from transformers import PreTrainedModel

from quantkit.encoder import EmbeddingPlan, EncoderPlan, LayerPlan, describe, unroll
from quantkit.exporter.cpu import CpuEmitter
from quantkit.exporter.cuda import CudaEmitter
from quantkit.exporter.emitter import Attention, Emitter
from quantkit.exporter.graph import GraphWriter
from quantkit.exporter.names import attention_name
from quantkit.exporter.portable import PortableEmitter
from quantkit.exporter.unpadded import UnpaddedEmitter
from quantkit.onnx_file import Target

__all__ = ["build"]


_EMITTERS: Mapping[Target, Callable[[GraphWriter, nn.Module], Emitter]] = {
    "cpu": CpuEmitter,
    "portable": PortableEmitter,
    "cuda": CudaEmitter,
    "cuda-unpadded": UnpaddedEmitter,
}
# What files of half precision are compared with.
_SINGLE: Mapping[Target, Callable[[GraphWriter, nn.Module], Emitter]] = {
    "cuda": partial(CudaEmitter, single=True),
    "cuda-unpadded": partial(UnpaddedEmitter, single=True),
}


def build(
    model: PreTrainedModel,
    metadata: Mapping[str, str],
    target: Target = "cpu",
    *,
    single: bool = False,
) -> onnx.ModelProto:
    """The ONNX model of a plan, float or quantized, with dynamic batch and length.

    Its inputs are the plan's arguments, int64 [batch, length], and its output the plan's:
    `logits` [batch, labels], of words [batch, length, labels], or `last_hidden_state`
    [batch, length, hidden]. With `single` a file of half precision is written in float32, for
    comparison.
    """
    model = unroll(model)
    plan, graph = describe(model), GraphWriter()
    emitter = (_SINGLE if single else _EMITTERS)[target](graph, model)
    hidden = _embeddings(plan, graph, emitter, int(model.config.max_position_embeddings))
    mask = emitter.mask("attention_mask")
    hidden = emitter.unpadded(hidden, mask)
    for number, layer in enumerate(plan.layers):
        name = attention_name(layer)
        attention = Attention(mask, plan.heads, plan.narrows(number), name)
        hidden = _layer(layer, emitter, hidden, attention)
    if not plan.head.first_only:
        hidden = emitter.padded(hidden)
    emitter.result(_head(plan, graph, emitter, hidden), plan.output)
    return graph.finish(
        dict.fromkeys(plan.arguments, ("batch", "length")),
        plan.output,
        _output_shape(model, plan),
        metadata,
    )


def _output_shape(model: PreTrainedModel, plan: EncoderPlan) -> Sequence[str | int]:
    if plan.head.kind == "features":
        return ("batch", "length", int(model.config.hidden_size))
    labels = len(model.config.id2label or ())
    return ("batch", labels) if plan.head.kind == "sequence" else ("batch", "length", labels)


def _embeddings(plan: EncoderPlan, graph: GraphWriter, emitter: Emitter, longest: int) -> str:
    embedding = plan.embedding
    total = emitter.embed(embedding.words, "input_ids")
    if embedding.types is not None:
        # A table of one row is no choice, and so no input: its row is added to every token.
        only = graph.constant("zero", np.array(0))
        ids = "token_type_ids" if "token_type_ids" in plan.arguments else only
        total = graph.add("Add", total, emitter.embed(embedding.types, ids))
    places = emitter.embed(embedding.positions, _positions(embedding, graph, longest))
    # The same order of additions as transformers', so that the sums round alike.
    normed = emitter.norm(embedding.norm, total, places)
    return normed if embedding.projection is None else emitter.linear(embedding.projection, normed)


def _positions(embedding: EmbeddingPlan, graph: GraphWriter, longest: int) -> str:
    """Row numbers of the position table: [length], or [batch, length] where padding counts.

    The first of all numbers, and no `Range`: of that ONNX Runtime makes a `Slice` of the table
    whose ends go from the host to the GPU and back, and then captures no CUDA graph.
    """
    if embedding.padding is None:
        length = graph.add("Shape", "input_ids", start=1, end=2)
        first = graph.constant("first", np.array([0]))
        return graph.add("Slice", graph.constant("places", np.arange(longest)), first, length)
    one = graph.constant("one", np.array(1))
    padding = graph.constant("padding", np.array(embedding.padding))
    word = graph.add("Not", graph.add("Equal", "input_ids", padding))
    counts = graph.add("Cast", word, to=onnx.TensorProto.INT64)
    places = graph.add("Mul", graph.add("CumSum", counts, one), counts)
    return graph.add("Add", places, padding)


def _layer(layer: LayerPlan, emitter: Emitter, hidden: str, attention: Attention) -> str:
    context = emitter.self_attention(layer.query_key_value, hidden, attention)
    if attention.first_only:
        hidden = emitter.first_token(hidden)
    projected = emitter.linear(layer.attention_output, context)
    hidden = emitter.norm(layer.attention_norm, projected, hidden)
    inner = emitter.activation(layer.activation, emitter.linear(layer.intermediate, hidden))
    return emitter.norm(layer.output_norm, emitter.linear(layer.output, inner), hidden)


def _head(plan: EncoderPlan, graph: GraphWriter, emitter: Emitter, hidden: str) -> str:
    head = plan.head
    if head.dense is not None and head.function is not None:
        hidden = emitter.function(head.function, emitter.linear(head.dense, hidden))
    if head.classifier is not None:
        hidden = emitter.linear(head.classifier, hidden)
    if head.kind == "sequence":
        hidden = graph.add("Squeeze", hidden, graph.constant("token_axis", np.array([1])))
    return hidden
