from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from quantkit.batching import collate
from quantkit.optimization import lr_factor, parameter_groups, set_dropout
from tests.training import SETTINGS, TRAIN, make_model


def test_lr_rises_and_falls_by_hand() -> None:
    # 10 steps, 30 %: three rise by quarters, the fourth is the peak, then down by sevenths.
    expected = [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0]
    assert [lr_factor(step, 10, 0.3) for step in range(11)] == pytest.approx(expected)
    assert [lr_factor(step, 2, 0.0) for step in range(3)] == [1, 0.5, 0]
    assert [lr_factor(step, 1, 0.9) for step in range(2)] == [1, 0]


@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True))
def test_every_step_learns_and_one_of_them_fully(steps: int, warmup: float) -> None:
    factors = [lr_factor(step, steps, warmup) for step in range(steps + 1)]
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert factors.count(1) == 1
    peak = factors.index(1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == 0


def test_biases_and_norms_are_not_decayed() -> None:
    model = make_model()
    decayed, plain = parameter_groups(model, replace(SETTINGS, weight_decay=0.3))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in plain["params"]}
    assert without == {
        name for name in names.values() if name.endswith(".bias") or "LayerNorm" in name
    }
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(
        names.values()
    ) - without


def test_frozen_parameters_are_left_out() -> None:
    model = make_model()
    model.get_parameter("classifier.weight").requires_grad_(False)
    model.get_parameter("classifier.bias").requires_grad_(False)
    found = [len(group["params"]) for group in parameter_groups(model, SETTINGS)]
    assert sum(found) == len(list(model.parameters())) - 2


def test_set_dropout_reaches_attention_and_configuration() -> None:
    model = make_model()
    set_dropout(model, 0.4)
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    fields = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    assert shares == {0.4} == {getattr(model.config, name) for name in fields}
    # Only the attention's own share is left, and it alone must make two passes differ.
    set_dropout(model, 0.0)
    attention: Any = model.get_submodule("bert.encoder.layer.0.attention.self")
    batch = collate(TRAIN, range(4), 0)
    model.train()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    attention.dropout.p = attention.dropout_prob = 0.4  # transformers 5 and 4
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


DISTILBERT = DistilBertForSequenceClassification(
    DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
)
ALBERT = AlbertForSequenceClassification(
    AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
)


@pytest.mark.parametrize("model", [DISTILBERT, ALBERT], ids=["distilbert", "albert"])
def test_without_dropout_two_passes_of_any_family_agree(model: PreTrainedModel) -> None:
    batch = collate(TRAIN, range(8), 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.train()
    set_dropout(model, 0.5)
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    named = [name for name in model.config.to_dict() if "dropout" in name and "qa_" not in name]
    assert {getattr(model.config, name) for name in named} == {0.5}
    set_dropout(model, 0.0)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
