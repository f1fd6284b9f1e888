"""What a model answers, read from its checkpoint's configuration."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from quantkit.errors import CheckpointError
from quantkit.heads import HEAD_KEY, Head, Kind

__all__ = ["head_of"]


def head_of(model: PreTrainedModel) -> Head:
    """The head that fine-tuning recorded, or what the class and the configuration say.

    A token classifier answers words and a bare model gives features. A sequence classifier
    is multilabel or a regression if `problem_type` says so, a regression with one output,
    and else a classification.

    Raises:
        CheckpointError: a recorded head of an unknown kind, or a regression of several values.
    """
    config: Any = model.config
    if (recorded := getattr(config, HEAD_KEY, None)) is not None:
        return Head.from_json(recorded)
    names: Mapping[Any, str] = config.id2label or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    kind = _kind(type(model).__name__, config.problem_type, len(labels))
    if kind == "regression" and len(labels) > 1:
        raise CheckpointError(
            f"The checkpoint's config.json says problem_type: regression with {len(labels)} "
            f"values; quantkit knows regressions of one. Set problem_type to what it answers."
        )
    return Head(kind, () if kind in ("regression", "features") else labels)


def _kind(name: str, problem: str | None, outputs: int) -> Kind:
    if name.endswith("ForTokenClassification"):
        return "words"
    if name.endswith("Model"):
        return "features"
    if problem == "multi_label_classification":
        return "multilabel"
    return "regression" if problem == "regression" or outputs == 1 else "classification"
