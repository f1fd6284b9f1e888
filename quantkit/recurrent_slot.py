"""The recipe's slot for a recurrent baseline; apart from the model, so that it needs no torch."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from quantkit.config import STRICT

__all__ = ["Recurrent"]

Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class Recurrent:
    """A word-level RNN or LSTM classifier, trained from nothing on the task's own texts.

    `padding` says what a direction reads behind a text: nothing (`masked`), or the pad word
    up to a fixed length (`unmasked`, the mistake of many published baselines: a state that
    is taken behind a long padding has forgotten the text).
    """

    cell: Literal["rnn", "lstm"] = "lstm"
    units: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)] = (64, 32)  # layers
    bidirectional: bool = True
    embedding: Positive = 128
    vocabulary: Annotated[int, Field(gt=2)] = 10_000  # rows, [PAD] and [UNK] among them
    padding: Literal["masked", "unmasked"] = "masked"
