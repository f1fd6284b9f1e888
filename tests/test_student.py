import re
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from quantkit.checkpoint import head_settings
from quantkit.errors import CheckpointError
from quantkit.heads import HEAD_KEY
from quantkit.student import every_second_layer
from tests.training import CLASSES, WORDS, make_model

SIZES: dict[str, Any] = dict(
    vocab_size=40,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    num_hidden_layers=6,
)
TEACHERS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES)),
    "bert of words": (BertForTokenClassification, BertConfig(**SIZES)),
    "bert alone": (BertModel, BertConfig(**SIZES)),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(hidden_dim=32, **SIZES)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SIZES)),
    "electra": (ElectraForSequenceClassification, ElectraConfig(embedding_size=8, **SIZES)),
}


def teacher(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = TEACHERS[name]
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases are all alike at first
            parameter.normal_()
    model.eval()
    return model


def layer_of(name: str) -> int | None:
    found = re.search(r"\.layer\.(\d+)\.", name)
    return None if found is None else int(found[1])


@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_has_layers_0_2_and_4_and_all_else_bit_for_bit(name: str) -> None:
    model = teacher(name)
    student = every_second_layer(model)
    assert type(student) is type(model)
    assert (student.config.num_hidden_layers, model.config.num_hidden_layers) == (3, 6)
    theirs, ours = model.state_dict(), student.state_dict()
    assert {layer_of(key) for key in ours} == {0, 1, 2, None}
    for key, value in ours.items():
        layer = layer_of(key)
        source = key if layer is None else key.replace(f".layer.{layer}.", f".layer.{2 * layer}.")
        assert torch.equal(value, theirs[source]), key
        assert value.data_ptr() != theirs[source].data_ptr()
    assert len(theirs) - len(ours) == sum(layer_of(key) in (1, 3, 5) for key in theirs)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_runs_and_is_not_its_teacher(name: str) -> None:
    model = teacher(name)
    student = every_second_layer(model).eval()
    batch = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4)}
    with torch.no_grad():
        ours, theirs = student(**batch)[0], model(**batch)[0]
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(("layers", "kept"), [(2, 1), (3, 2), (5, 3), (12, 6)])
def test_an_odd_number_of_layers_keeps_the_last(layers: int, kept: int) -> None:
    model = make_model(layers=layers)
    student = every_second_layer(model)
    assert student.config.num_hidden_layers == kept
    last = "bert.encoder.layer.{}.output.dense.weight"
    expected = model.get_parameter(last.format(2 * (kept - 1)))
    assert torch.equal(student.get_parameter(last.format(kept - 1)), expected)


def test_the_configuration_keeps_the_head_and_the_teachers_own_stays() -> None:
    model = make_model(WORDS)
    for name, value in head_settings(WORDS).items():
        setattr(model.config, name, value)
    student = every_second_layer(model)
    assert getattr(student.config, HEAD_KEY) == WORDS.to_json()
    assert student.config.id2label == {0: "O", 1: "B-X"}
    student.config.id2label = {0: "changed"}
    assert model.config.id2label == {0: "O", 1: "B-X"}
    assert model.config.num_hidden_layers == 2


def test_shared_layers_and_one_layer_alone_are_refused() -> None:
    albert = AlbertForSequenceClassification(AlbertConfig(embedding_size=8, **SIZES))
    with pytest.raises(CheckpointError, match="AlbertForSequenceClassification has 0 layers"):
        every_second_layer(albert)
    with pytest.raises(CheckpointError, match=r"has 1 layers.*Remove `student`"):
        every_second_layer(make_model(CLASSES, layers=1))
