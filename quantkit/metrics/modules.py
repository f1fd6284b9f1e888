"""The scores as modules of `evaluate`; none needs a download.

Import them from `quantkit.metrics`, which imports this file, and with it `evaluate` and
`datasets`, when one is wanted. Every answer is flat: the names of `quantkit.metrics.scores`
and `precision_NAME`, `recall_NAME`, `f1_NAME` of each class or chunk type.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from quantkit.heads import Head
from quantkit.metrics import per_class, scores
from quantkit.metrics.answers import Answers
from quantkit.metrics.classification import PARTS

__all__ = ["Aspects", "Chunks", "Classification"]


class Classification(evaluate.Metric):  # type: ignore[misc]
    """Scores of class ids; `compute` takes the classes' names as `labels`."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("int64"), "class ids; labels: the classes' names.")

    def _compute(
        self, predictions: list[int], references: list[int], labels: Sequence[str]
    ) -> dict[str, float]:
        head = Head("classification", tuple(labels))
        return _flat(head, np.asarray(references), np.asarray(predictions))


class Aspects(evaluate.Metric):  # type: ignore[misc]
    """Scores of class ids [rows, aspects]; `compute` takes the classes' names as `labels`."""

    def _info(self) -> evaluate.MetricInfo:
        values = datasets.Sequence(datasets.Value("int64"))
        return _info(values, "a list of class ids, one per aspect; labels: the classes' names.")

    def _compute(
        self, predictions: list[list[int]], references: list[list[int]], labels: Sequence[str]
    ) -> dict[str, float]:
        aspects = tuple(str(at) for at in range(len(references[0])))
        head = Head("aspects", tuple(labels), aspects)
        return _flat(head, np.asarray(references), np.asarray(predictions))


class Chunks(evaluate.Metric):  # type: ignore[misc]
    """Scores of tags such as B-PER, a list of strings for each sentence."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Sequence(datasets.Value("string")), "a list of tags.")

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]]
    ) -> dict[str, float]:
        labels = sorted({tag for row in [*references, *predictions] for tag in row})
        ids = {label: at for at, label in enumerate(labels)}
        sides = [
            [np.array([ids[tag] for tag in row]) for row in side]
            for side in (references, predictions)
        ]
        return _flat(Head("words", tuple(labels)), *sides)


def _info(values: Any, inputs: str) -> evaluate.MetricInfo:  # noqa: ANN401
    return evaluate.MetricInfo(
        description="Accuracy, mean precision, recall and F1, and those of each class.",
        citation="",
        inputs_description=f"predictions, references: {inputs}",
        features=datasets.Features({"predictions": values, "references": values}),
    )


def _flat(head: Head, references: Answers, predictions: Answers) -> dict[str, float]:
    answer = scores(head, references, predictions)
    for row in per_class(head, references, predictions):
        if row.name:  # the one type of the tags B, I, O has none, and is the mean
            answer |= {f"{part}_{row.name}": getattr(row, part) for part in PARTS}
    return answer
