"""The description of an encoder that quantization, export and the parity gate walk."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["EmbeddingPlan", "EncoderPlan", "HeadPlan", "LayerPlan", "SharedInput"]


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
class EmbeddingPlan:
    """The sum of the tables' rows, its norm, and in some families a Linear to full width.

    `padding` is the token id that RoBERTa's positions leave out: they count the other ids,
    from `padding + 1` on. None: positions are 0, 1, 2, ...
    """

    words: str
    positions: str
    types: str | None  # None: the family has none
    norm: str
    projection: SharedInput | None
    padding: int | None

    @property
    def tables(self) -> tuple[str, ...]:
        """The embedding tables."""
        tables = (self.words, self.positions, self.types)
        return tuple(table for table in tables if table is not None)


@dataclass(frozen=True)
class LayerPlan:
    """One transformer layer, post-LayerNorm: norm(x + sublayer(x)) twice.

    `module` is the one that holds all the others. `first` is the number of the first layer that
    holds the very same weights: this layer's own, except where a model calls one layer several
    times.
    """

    module: str
    query_key_value: SharedInput
    attention_output: SharedInput
    attention_norm: str
    intermediate: SharedInput
    activation: str
    output: SharedInput
    output_norm: str
    first: int

    @property
    def inputs(self) -> tuple[SharedInput, ...]:
        """Every tensor that a Linear reads, in the order of computation."""
        return (self.query_key_value, self.attention_output, self.intermediate, self.output)


@dataclass(frozen=True)
class HeadPlan:
    """What stands on the last layer.

    sequence   the first token's vector, through `dense` and its function, to the classifier
    words      every token's vector to the classifier
    features   the last layer itself: no `dense`, no `classifier`
    """

    kind: Literal["sequence", "words", "features"]
    dense: SharedInput | None = None
    function: Literal["tanh", "relu", "gelu"] | None = None  # of what `dense` computes
    classifier: SharedInput | None = None

    @property
    def first_only(self) -> bool:
        """Whether it reads the first token of each text, and no other."""
        return self.kind == "sequence"

    @property
    def inputs(self) -> tuple[SharedInput, ...]:
        """Every tensor that a Linear reads, in the order of computation."""
        return tuple(shared for shared in (self.dense, self.classifier) if shared is not None)


@dataclass(frozen=True)
class EncoderPlan:
    """Module names of a whole model, and the few numbers that its graph needs.

    arguments      of the model's forward, those that its answers depend on
    heads          attention heads
    pad_token_id   what stands in `input_ids` behind a text's end
    """

    family: str
    arguments: tuple[str, ...]
    embedding: EmbeddingPlan
    layers: tuple[LayerPlan, ...]
    head: HeadPlan
    heads: int
    pad_token_id: int

    @property
    def output(self) -> str:
        """The name of what the model computes, in its own result and in an exported file."""
        return "last_hidden_state" if self.head.kind == "features" else "logits"

    def narrows(self, number: int) -> bool:
        """Whether of layer `number` only the first token is read: the last one's under such a head.

        Behind that layer's keys and values the other tokens need not be computed.
        """
        return self.head.first_only and number + 1 == len(self.layers)

    def inputs(self) -> Iterator[SharedInput]:
        """Every tensor that a Linear reads, in the order of computation."""
        if self.embedding.projection is not None:
            yield self.embedding.projection
        for layer in self.layers:
            yield from layer.inputs
        yield from self.head.inputs

    def layers_before(self, shared: SharedInput) -> int:
        """How many layers are computed before this tensor: all of them where the head reads it."""
        for number, layer in enumerate(self.layers):
            if shared in layer.inputs:
                return number
        return 0 if shared == self.embedding.projection else len(self.layers)

    def calls(self) -> Iterator[tuple[SharedInput, ...]]:
        """`inputs`, those whose Linears hold the same weights together: one per call."""
        if self.embedding.projection is not None:
            yield (self.embedding.projection,)
        for number, layer in enumerate(self.layers):
            if layer.first == number:
                same = [other for other in self.layers if other.first == number]
                yield from zip(*(other.inputs for other in same), strict=True)
        for shared in self.head.inputs:
            yield (shared,)
