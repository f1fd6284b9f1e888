"""Every kind of answer: read from a checkpoint's configuration, and known to the gate."""

import copy
from typing import Any

import pytest
import torch

from quantkit.encoder import head_of
from quantkit.errors import CheckpointError, ParityError
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import check_parity
from quantkit.heads import HEAD_KEY, Head
from tests.conftest import ROWS
from tests.models import HEADS, LABELS, quantized, small_model

SEQUENCE, WORDS, BARE = HEADS


@pytest.mark.parametrize(
    ("head", "settings", "expected"),
    [
        (SEQUENCE, {}, Head("classification", tuple(LABELS.values()))),
        (SEQUENCE, {"problem_type": "regression", "id2label": {0: "x"}}, Head("regression")),
        (SEQUENCE, {"id2label": {0: "x"}}, Head("regression")),
        (
            SEQUENCE,
            {"problem_type": "multi_label_classification"},
            Head("multilabel", tuple(LABELS.values())),
        ),
        (WORDS, {}, Head("words", tuple(LABELS.values()))),
        (BARE, {}, Head("features")),
        (
            SEQUENCE,
            {HEAD_KEY: {"kind": "aspects", "labels": ["a", "b"], "aspects": ["x", "y"]}},
            Head("aspects", ("a", "b"), ("x", "y")),
        ),
    ],
)
def test_heads_are_read_from_the_configuration(
    head: str, settings: dict[str, Any], expected: Head
) -> None:
    model = small_model("Bert", head, layers=1)
    for name, value in settings.items():
        setattr(model.config, name, value)
    assert head_of(model) == expected


def test_a_regression_of_several_values_is_refused() -> None:
    model = small_model("Bert", layers=1)
    model.config.problem_type = "regression"
    with pytest.raises(CheckpointError, match="regression with 3 values"):
        head_of(model)


@pytest.mark.parametrize("kind", ["aspects", "multilabel", "regression"])
def test_the_gate_knows_every_kind_of_answer(kind: str) -> None:
    heads = {
        "aspects": Head("aspects", ("a", "b"), ("x", "y", "z")),
        "multilabel": Head("multilabel", ("a", "b", "c")),
        "regression": Head("regression"),
    }
    head = heads[kind]
    names = dict(enumerate(head.output_names))
    config: dict[str, Any] = {"id2label": names, HEAD_KEY: head.to_json()}
    model = small_model("Bert", layers=1, num_labels=len(names), **config)
    integer = quantized(model).model
    for each in (model, integer):
        result = check_parity(each, build(each, {}), gate_batches(ROWS, 40))
        assert result.problems() == []
    assert (result.disagreements_allowed > 0) == (kind != "regression")
    wrong = copy.deepcopy(integer)
    with torch.no_grad():
        wrong.classifier.bias += 0.5
    with pytest.raises(ParityError, match=r"\(c\)"):
        check_parity(integer, build(wrong, {}), gate_batches(ROWS, 40))
