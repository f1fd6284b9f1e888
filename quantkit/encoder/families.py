"""Module names of each family, as transformers 4.57 and 5 spell them.

A family is described once, as names; everything else walks the plan made of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from quantkit.encoder.plan import EmbeddingPlan, EncoderPlan, HeadPlan, LayerPlan, SharedInput
from quantkit.encoder.unroll import unroll
from quantkit.errors import CheckpointError

__all__ = ["describe"]


@dataclass(frozen=True)
class _LayerNames:
    """Names within a layer."""

    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    intermediate: str
    activation: str
    output: str
    output_norm: str


@dataclass(frozen=True)
class _Family:
    """Names within an encoder; those of `head` within the model, "{encoder}" being a prefix."""

    name: str
    layer: str  # "{}" is the layer's number
    names: _LayerNames
    head: HeadPlan  # of sequences
    projection: str | None = None  # where a model has it
    counts_padding: bool = False  # RoBERTa's positions


_BERT_LAYER = _LayerNames(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    intermediate="intermediate.dense",
    activation="intermediate.intermediate_act_fn",
    output="output.dense",
    output_norm="output.LayerNorm",
)
_ALBERT_LAYER = _LayerNames(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_output="attention.dense",
    attention_norm="attention.LayerNorm",
    intermediate="ffn",
    activation="activation",
    output="ffn_output",
    output_norm="full_layer_layer_norm",
)
_DISTILBERT_LAYER = _LayerNames(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    intermediate="ffn.lin1",
    activation="ffn.activation",
    output="ffn.lin2",
    output_norm="output_layer_norm",
)


def _sequence(dense: str, function: Literal["tanh", "relu", "gelu"], classifier: str) -> HeadPlan:
    return HeadPlan("sequence", SharedInput((dense,)), function, SharedInput((classifier,)))


_ROBERTA_HEAD = _sequence("classifier.dense", "tanh", "classifier.out_proj")

# By the beginning of a class's name.
_FAMILIES = {
    "Bert": _Family(
        name="bert",
        layer="encoder.layer.{}",
        names=_BERT_LAYER,
        head=_sequence("{encoder}pooler.dense", "tanh", "classifier"),
    ),
    "Albert": _Family(
        name="albert",
        layer="encoder.albert_layer_groups.{}.albert_layers.0",
        names=_ALBERT_LAYER,
        head=_sequence("{encoder}pooler", "tanh", "classifier"),
        projection="encoder.embedding_hidden_mapping_in",
    ),
    "DistilBert": _Family(
        name="distilbert",
        layer="transformer.layer.{}",
        names=_DISTILBERT_LAYER,
        head=_sequence("pre_classifier", "relu", "classifier"),
    ),
    "Roberta": _Family(
        name="roberta",
        layer="encoder.layer.{}",
        names=_BERT_LAYER,
        head=_ROBERTA_HEAD,
        counts_padding=True,
    ),
    "XLMRoberta": _Family(
        name="xlm-roberta",
        layer="encoder.layer.{}",
        names=_BERT_LAYER,
        head=_ROBERTA_HEAD,
        counts_padding=True,
    ),
    "Electra": _Family(
        name="electra",
        layer="encoder.layer.{}",
        names=_BERT_LAYER,
        head=_sequence("classifier.dense", "gelu", "classifier.out_proj"),
        projection="embeddings_project",
    ),
}
# By the end of a class's name; None: the family's own.
_HEADS = {
    "ForSequenceClassification": None,
    "ForTokenClassification": HeadPlan("words", classifier=SharedInput(("classifier",))),
    "Model": HeadPlan("features"),
}
_KNOWN = {
    f"{start}{end}": (family, head or family.head)
    for start, family in _FAMILIES.items()
    for end, head in _HEADS.items()
}


def describe(model: nn.Module) -> EncoderPlan:
    """The plan of a Hugging Face model, float or quantized.

    The names are those of `unroll(model)`, which is the model itself except for an ALBERT
    that calls one layer several times.

    Raises:
        CheckpointError: a family or a head that quantkit does not know, or a configuration
            that makes something else than an encoder with absolute positions of it.
    """
    known = _KNOWN.get(type(model).__name__)
    if known is None or not isinstance(model, PreTrainedModel):
        raise CheckpointError(_unknown(model))
    family, head = known
    _check_config(model)
    model = unroll(model)
    prefix = "" if head.kind == "features" else f"{model.base_model_prefix}."
    config: Any = model.config
    embedding = _embedding(family, model, prefix)
    types = embedding.types is not None and int(config.type_vocab_size) > 1
    padding = embedding.padding
    return EncoderPlan(
        family=family.name,
        arguments=("input_ids", "attention_mask", *(("token_type_ids",) if types else ())),
        embedding=embedding,
        layers=_layers(family, model, prefix),
        head=_within(head, prefix),
        heads=int(config.num_attention_heads),
        pad_token_id=int(config.pad_token_id or 0) if padding is None else padding,
    )


def _unknown(model: nn.Module) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", "unknown")
    return (
        f"quantkit cannot quantize a {type(model).__name__} (model_type {kind!r}); it knows "
        f"{', '.join(_FAMILIES)}, each {', '.join(_HEADS)}. Load the checkpoint with "
        f"AutoModelForSequenceClassification, AutoModelForTokenClassification or AutoModel."
    )


def _check_config(model: PreTrainedModel) -> None:
    if getattr(model.config, "is_decoder", False):
        raise CheckpointError(
            "The checkpoint's config.json says is_decoder: true; quantkit quantizes encoders. "
            "Set is_decoder to false if the weights are an encoder's."
        )
    positions = getattr(model.config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise CheckpointError(
            f"The checkpoint's config.json says position_embedding_type: {positions}; quantkit "
            f"knows absolute positions only. Take a checkpoint that was trained with these."
        )


def _embedding(family: _Family, model: nn.Module, prefix: str) -> EmbeddingPlan:
    inside = f"{prefix}embeddings"
    types = f"{inside}.token_type_embeddings"
    projection = f"{prefix}{family.projection}"
    names = {name for name, _ in model.named_modules()}
    return EmbeddingPlan(
        words=f"{inside}.word_embeddings",
        positions=f"{inside}.position_embeddings",
        types=types if types in names else None,
        norm=f"{inside}.LayerNorm",
        projection=SharedInput((projection,)) if projection in names else None,
        padding=_padding(model.get_submodule(inside)) if family.counts_padding else None,
    )


def _padding(embeddings: Any) -> int:  # noqa: ANN401
    """The id that the module itself compares with, whatever the configuration says now."""
    if embeddings.padding_idx is None:
        raise CheckpointError(
            "The checkpoint's config.json names no pad_token_id, from which RoBERTa counts its "
            "positions. Add the id of the tokenizer's padding token; roberta-base has 1."
        )
    return int(embeddings.padding_idx)


def _layers(family: _Family, model: PreTrainedModel, prefix: str) -> tuple[LayerPlan, ...]:
    plans: list[LayerPlan] = []
    firsts: dict[int, int] = {}  # a weight's identity -> the first layer that holds it
    for number in range(model.config.num_hidden_layers):
        module = f"{prefix}{family.layer.format(number)}"
        norm: Any = model.get_submodule(f"{module}.{family.names.output_norm}")
        first = firsts.setdefault(id(norm.weight), number)
        plans.append(_layer(family.names, module, first))
    return tuple(plans)


def _layer(names: _LayerNames, module: str, first: int) -> LayerPlan:
    inside = f"{module}."

    def reads(*linears: str, producer: str | None = None) -> SharedInput:
        return SharedInput(tuple(f"{inside}{name}" for name in linears), producer)

    return LayerPlan(
        module=module,
        query_key_value=reads(names.query, names.key, names.value),
        attention_output=reads(names.attention_output, producer=f"{inside}{names.value}"),
        attention_norm=f"{inside}{names.attention_norm}",
        intermediate=reads(names.intermediate),
        activation=f"{inside}{names.activation}",
        output=reads(names.output),
        output_norm=f"{inside}{names.output_norm}",
        first=first,
    )


def _within(head: HeadPlan, prefix: str) -> HeadPlan:
    """The head with the encoder's prefix put in."""
    if head.dense is None:
        return head
    dense = SharedInput(tuple(name.format(encoder=prefix) for name in head.dense.linears))
    return HeadPlan(head.kind, dense, head.function, head.classifier)
