"""What a target is: the functions that write a model's parts as operators of its runtime."""

from typing import Literal, NamedTuple, Protocol

from quantkit.encoder import SharedInput

__all__ = ["Attention", "Emitter"]


class Attention(NamedTuple):
    """How the tokens of a text attend to each other."""

    mask: str  # the graph value that `Emitter.mask` made
    heads: int
    first_only: bool  # whether nothing reads what tokens behind the first find
    name: str  # of what the tokens find


class Emitter(Protocol):
    """Writes one model's modules into a graph, for one target.

    Every function takes and gives names of graph values, float [batch, length, width] between
    the parts. What the gate reads has the names of `exporter.names`.
    """

    def mask(self, name: str) -> str:
        """What `self_attention` takes, made of the input `name`: int64, 1 where a token stands."""

    def embed(self, name: str, ids: str) -> str:
        """Rows `ids` [...] of the embedding table `name` [..., dim]."""

    def unpadded(self, x: str, mask: str) -> str:
        """What the layers read of the embeddings `x`, for `mask` is what `mask` has made."""

    def padded(self, x: str) -> str:
        """What the layers have made of it as [batch, length, width] again."""

    def linear(self, shared: SharedInput, x: str) -> str:
        """All Linears that read `x` as one product, their outputs side by side."""

    def self_attention(self, shared: SharedInput, x: str, attention: Attention) -> str:
        """Softmax attention of `x` over itself [batch, length, hidden].

        Where only the first token attends, [batch, 1, hidden].
        """

    def first_token(self, x: str) -> str:
        """The first token of each text of `x`: [batch, 1, width]."""

    def norm(self, name: str, x: str, residual: str | None = None) -> str:
        """LayerNorm of `x`, or of `x + residual`."""

    def activation(self, name: str, x: str) -> str:
        """The activation function of the module `name`."""

    def function(self, name: Literal["tanh", "relu", "gelu"], x: str) -> str:
        """A function that a head applies without a module for it."""

    def result(self, x: str, name: str) -> str:
        """The graph's output `name`, float32, of the last value `x`."""
