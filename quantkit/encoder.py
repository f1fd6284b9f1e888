"""What a BERT-family encoder is made of: which Linear reads which tensor.

A *family* is described once, as module names; quantization, export and the parity gate all
walk this description instead of matching names of their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from quantkit.errors import CheckpointError

__all__ = ["EncoderPlan", "LayerPlan", "SharedInput", "describe"]


@dataclass(frozen=True)
class SharedInput:
    """One tensor and the Linears that read it.

    `producer` names the Linear whose output channels are, linearly and one to one, this
    tensor's channels: attention averages the value projection over positions and leaves
    its channels apart, so a factor per channel can move into the producer.
    """

    linears: tuple[str, ...]
    producer: str | None = None


@dataclass(frozen=True)
class LayerPlan:
    """One transformer layer, post-LayerNorm: norm(x + sublayer(x)) twice."""

    query_key_value: SharedInput
    attention_output: SharedInput
    attention_norm: str
    intermediate: SharedInput
    activation: str
    output: SharedInput
    output_norm: str


@dataclass(frozen=True)
class EncoderPlan:
    """Module names of a whole encoder with its classification head."""

    family: str
    word_embeddings: str
    position_embeddings: str
    token_type_embeddings: str
    embedding_norm: str
    layers: tuple[LayerPlan, ...]
    pooler: SharedInput
    classifier: SharedInput
    heads: int  # attention heads

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The embedding tables."""
        return (self.word_embeddings, self.position_embeddings, self.token_type_embeddings)

    def inputs(self) -> Iterator[SharedInput]:
        """Every tensor that a Linear reads, in the order of computation."""
        for layer in self.layers:
            yield layer.query_key_value
            yield layer.attention_output
            yield layer.intermediate
            yield layer.output
        yield self.pooler
        yield self.classifier


def describe(model: nn.Module) -> EncoderPlan:
    """The plan of a Hugging Face model.

    Raises:
        CheckpointError: a family or a head that quantkit does not know.
    """
    config = getattr(model, "config", None)
    kind = type(model).__name__
    family = _FAMILIES.get(kind)
    if family is None or not isinstance(model, PreTrainedModel):
        known = ", ".join(sorted(_FAMILIES))
        raise CheckpointError(
            f"quantkit cannot quantize a {kind} (model_type "
            f"{getattr(config, 'model_type', 'unknown')!r}); it knows {known}. "
            f"Load the checkpoint with AutoModelForSequenceClassification."
        )
    return family(model)


def _bert(model: PreTrainedModel) -> EncoderPlan:
    """BertForSequenceClassification, of transformers 4.57 and 5."""
    if getattr(model.config, "is_decoder", False):
        raise CheckpointError(
            "The checkpoint's config.json says is_decoder: true; quantkit quantizes encoders. "
            "Set is_decoder to false if the weights are an encoder's."
        )
    embeddings = "bert.embeddings"
    return EncoderPlan(
        family="bert",
        word_embeddings=f"{embeddings}.word_embeddings",
        position_embeddings=f"{embeddings}.position_embeddings",
        token_type_embeddings=f"{embeddings}.token_type_embeddings",
        embedding_norm=f"{embeddings}.LayerNorm",
        layers=tuple(
            _bert_layer(f"bert.encoder.layer.{index}")
            for index in range(model.config.num_hidden_layers)
        ),
        pooler=SharedInput(("bert.pooler.dense",)),
        classifier=SharedInput(("classifier",)),
        heads=model.config.num_attention_heads,
    )


def _bert_layer(prefix: str) -> LayerPlan:
    attention = f"{prefix}.attention"
    value = f"{attention}.self.value"
    return LayerPlan(
        query_key_value=SharedInput((f"{attention}.self.query", f"{attention}.self.key", value)),
        attention_output=SharedInput((f"{attention}.output.dense",), producer=value),
        attention_norm=f"{attention}.output.LayerNorm",
        intermediate=SharedInput((f"{prefix}.intermediate.dense",)),
        activation=f"{prefix}.intermediate.intermediate_act_fn",
        output=SharedInput((f"{prefix}.output.dense",)),
        output_norm=f"{prefix}.output.LayerNorm",
    )


_FAMILIES: dict[str, Callable[[PreTrainedModel], EncoderPlan]] = {
    "BertForSequenceClassification": _bert,
}
