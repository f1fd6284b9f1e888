"""How near one model's outputs are to the float model's, on rows with labels and on texts."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from quantkit.answers import decisions
from quantkit.batching import Encoded
from quantkit.heads import Head
from quantkit.metrics import (
    MAIN,
    Answers,
    Interval,
    Statistic,
    agreement,
    paired_bootstrap,
    statistics,
)
from quantkit.prediction import Outputs, padded_batches, predict

__all__ = ["Closeness", "FloatAnswers", "divergence", "divergence_power", "row_count", "sqnr_db"]


@dataclass(frozen=True)
class Closeness:
    """What quantization changed.

    Attributes:
        sqnr_db: power of the float model's outputs over that of their change, in decibels, on
            the validation rows; None where nothing changed.
        agreement: share of equal answers there; see `metrics.agreement`.
        drop: what the main score fell by there, in points (hundredths); below 0 if it rose.
        divergence: from the float model's answers, over the training texts; see `divergence`.
    """

    sqnr_db: float | None
    agreement: float
    drop: float
    divergence: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Closeness":
        """The inverse of `to_json`."""
        return cls(**values)


class FloatAnswers:
    """The float model's answers, which those of other models are held against.

    Args:
        model: float, of any head; features have no labels, and are scored against themselves.
        validation: rows with their references.
        texts: further rows, whose labels are not read.
        pad_token_id: fills the shorter rows of a batch.
    """

    def __init__(
        self, model: nn.Module, validation: Encoded, texts: Encoded, *, pad_token_id: int
    ) -> None:
        self.head = validation.head
        self.validation = validation
        self.texts = texts
        self._padding = pad_token_id
        self._on_validation = self._outputs(model, validation)
        self._on_texts = self._outputs(model, texts)
        self._answers = decisions(self.head, self._on_validation)
        features = self.head.kind == "features"
        self._references: Answers = self._answers if features else validation.references()
        self._score = self._statistic(self._answers)

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """All that `closeness` runs through a model, in this order."""
        for rows in (self.validation, self.texts):
            yield from padded_batches(rows, self._padding)

    @property
    def rows(self) -> int:
        """Number of validation rows."""
        return row_count(self.validation)

    @property
    def text_rows(self) -> int:
        """Number of texts."""
        return row_count(self.texts)

    @property
    def score(self) -> float:
        """The float model's main score on the validation rows, a share."""
        return self._score.value

    def closeness(self, model: nn.Module) -> Closeness:
        """Everything; `model` runs over the validation rows, then over the texts."""
        outputs = self._outputs(model, self.validation)
        answers = decisions(self.head, outputs)
        return Closeness(
            sqnr_db(self._on_validation, outputs),
            agreement(self.head, self._answers, answers),
            100 * (self.score - self._statistic(answers).value),
            self.divergence(model),
        )

    def change(self, model: nn.Module) -> Interval:
        """The main score minus the float model's, shares, with its 95 % bootstrap interval."""
        answers = decisions(self.head, self._outputs(model, self.validation))
        return paired_bootstrap(self._score, self._statistic(answers))

    def divergence(self, model: nn.Module) -> float:
        """`divergence` over the texts."""
        return divergence(self.head, self._on_texts, self._outputs(model, self.texts))

    def _statistic(self, answers: Answers) -> Statistic:
        return statistics(self.head, self._references, answers)[MAIN[self.head.kind]]

    def _outputs(self, model: nn.Module, rows: Encoded) -> Outputs:
        return predict(model, rows, pad_token_id=self._padding)


def row_count(encoded: Encoded) -> int:
    """Rows of the dataset: a long sentence is several windows of one."""
    return len(np.unique(encoded.sources))


def sqnr_db(exact: Outputs, changed: Outputs) -> float | None:
    """10 log10(sum x² / sum (x - y)²) over all outputs; None where they are equal.

    Outputs of 3 and 4 that became 3 and 4.5 have 10 log10(25 / 0.25) = 20 dB.
    """
    x, y = _cells(exact), _cells(changed)
    noise = float(np.square(x - y).sum())
    return None if noise == 0.0 else 10.0 * float(np.log10(np.square(x).sum() / noise))


def divergence(head: Head, exact: Outputs, changed: Outputs) -> float:
    """How far the distribution of answers moved: the mean over rows, aspects, labels or words.

    kind                             one answer's divergence
    classification, aspects, words   Kullback-Leibler, sum p ln(p / q) of the classes' shares
    multilabel                       the same of a label's two shares, yes and no
    regression                       squared difference of the two values
    features                         1 - cosine of the two vectors

    0 for equal models. p = (0.5, 0.5) and q = (0.25, 0.75) give 0.5 ln 2 + 0.5 ln(2 / 3) = 0.144.
    """
    x, y = _cells(exact), _cells(changed)
    if head.kind == "regression":
        return float(np.square(x - y).mean())
    if head.kind == "features":
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosines = (x * y).sum(1) / np.where(lengths > 0, lengths, 1.0)
        return max(0.0, float(1.0 - cosines.mean()))
    p, q = _log_shares(head, x), _log_shares(head, y)
    return max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean()))


def divergence_power(head: Head) -> float:
    """How the share of changed answers grows with `divergence`: like its power of this number.

    A divergence grows like the square of the noise on the outputs. Labels flip where the noise
    crosses the margin between two of them, whose density near 0 is about even: like the noise
    itself, hence 1/2. A correlation and a cosine fall like the square of the noise, hence 1.
    """
    return 1.0 if head.kind in ("regression", "features") else 0.5


def _cells(outputs: Outputs) -> np.ndarray:
    """float64 [rows or words, outputs]."""
    together = np.concatenate(outputs) if isinstance(outputs, list) else outputs
    return np.asarray(together, np.float64)


def _log_shares(head: Head, logits: np.ndarray) -> np.ndarray:
    """Logarithms of the shares that compete with each other [..., classes]."""
    if head.kind == "multilabel":
        logits = np.stack([logits, np.zeros_like(logits)], axis=-1)  # the sigmoid as a softmax
    elif head.kind == "aspects":
        logits = logits.reshape(len(logits), len(head.aspects), len(head.labels))
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
