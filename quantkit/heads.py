"""What a model answers: the kinds of task, and how numbers become answers.

Torch-free, because a session decodes with it too. The same `decide` serves training,
scoring, the parity gate and the session.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from quantkit.errors import CheckpointError

__all__ = ["HEAD_KEY", "Head", "Kind"]

Kind = Literal["classification", "aspects", "multilabel", "regression", "words", "features"]

HEAD_KEY = "quantkit_head"  # of a checkpoint's config.json


@dataclass(frozen=True)
class Head:
    """One kind of answer and its names.

    kind             answers of a row                                    logits of a row
    classification   one of `labels`                                     [labels]
    aspects          one of `labels` for each of `aspects`               [aspects * labels]
    multilabel       any number of `labels`                              [labels]
    regression       one number                                          [1]
    words            one of `labels` for each word                       [tokens, labels]
    features         a vector: the mean over tokens of the last layer    [tokens, hidden]

    The position of a name in `labels` is its class id.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Width of the last Linear; 0 for features, which have none."""
        if self.kind == "aspects":
            return len(self.aspects) * len(self.labels)
        return {"regression": 1, "features": 0}.get(self.kind, len(self.labels))

    @property
    def output_names(self) -> tuple[str, ...]:
        """One name per output, as `id2label` of a config.json lists them."""
        if self.kind == "aspects":
            return tuple(f"{aspect}:{label}" for aspect in self.aspects for label in self.labels)
        return ("value",) if self.kind == "regression" else self.labels

    def described(self) -> str:
        """What is answered, for messages: the kind, its labels and its aspects."""
        names = f" ({', '.join(self.labels)})" if self.labels else ""
        aspects = f" of {', '.join(self.aspects)}" if self.aspects else ""
        return f"{self.kind}{names}{aspects}"

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """The answers of `logits` [..., outputs].

        classification and words: class ids int64 [...]; aspects: class ids [..., aspects];
        multilabel: 0 or 1 [..., labels], 1 where the probability is above one half;
        regression: the value [...]; features: the vectors as they are.
        """
        if self.kind in ("classification", "words"):
            return np.asarray(logits.argmax(-1))
        if self.kind == "aspects":
            shape = (*logits.shape[:-1], len(self.aspects), len(self.labels))
            return np.asarray(logits.reshape(shape).argmax(-1))
        if self.kind == "multilabel":
            return (logits > 0).astype(np.int64)
        return logits[..., 0] if self.kind == "regression" else logits

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax over the classes, of each aspect apart; sigmoid for multilabel.

        Shapes: classification and words [..., labels], aspects [..., aspects, labels],
        multilabel [..., labels].
        """
        if self.kind == "multilabel":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))  # the sigmoid, without overflow
        if self.kind == "aspects":
            logits = logits.reshape(*logits.shape[:-1], len(self.aspects), len(self.labels))
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(exponents / exponents.sum(-1, keepdims=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "labels": list(self.labels), "aspects": list(self.aspects)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Head":
        """The inverse of `to_json`.

        Raises:
            CheckpointError: not a head, or of a kind that this quantkit does not know.
        """
        kind: Any = values.get("kind")
        if kind not in get_args(Kind):
            raise CheckpointError(
                f"{HEAD_KEY} says kind {kind!r}; quantkit knows {', '.join(get_args(Kind))}. "
                f"Upgrade quantkit, or fine-tune again."
            )
        return cls(kind, tuple(values.get("labels", ())), tuple(values.get("aspects", ())))
