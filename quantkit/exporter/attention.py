"""What every target's attention is told, and the operator that two of them share."""

from collections.abc import Sequence
from typing import NamedTuple

from quantkit.exporter.graph import CONTRIB, GraphWriter

__all__ = ["Attention", "multi_head"]


class Attention(NamedTuple):
    """How the tokens of a text attend to each other."""

    mask: str  # the graph value that `Emitter.mask` made
    heads: int
    first_only: bool  # whether nothing reads what tokens behind the first find
    name: str  # of what the tokens find


def multi_head(graph: GraphWriter, parts: Sequence[str], attention: Attention) -> str:
    """ONNX Runtime's operator over query, key and value, [batch, length, hidden] each.

    All tokens attend, also where one is read: with fewer queries than keys and a mask,
    onnxruntime 1.17 and 1.20 give wrong numbers.
    """
    return graph.add(
        "MultiHeadAttention",
        *parts,
        "",
        attention.mask,
        domain=CONTRIB,
        num_heads=attention.heads,
        name=attention.name,
    )
