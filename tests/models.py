"""Small random models of every family and head."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from quantkit.encoder import describe, unroll
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Recipe, with_bits, with_changes, with_target
from tests.conftest import ROWS, batch_of

FAMILIES = ("Bert", "Albert", "DistilBert", "Roberta", "XLMRoberta", "Electra")
HEADS = ("ForSequenceClassification", "ForTokenClassification", "Model")
HIDDEN, LENGTH = 48, 60  # LENGTH: tokens that fit into every family's position table
LABELS = {0: "positive", 1: "neutral", 2: "negative"}
NARROW = 24  # width of embeddings where it is not the encoder's

# Where families differ from BERT in their names or sizes.
_SETTINGS: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": NARROW, "inner_group_num": 1},
    "Roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRoberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "Electra": {"embedding_size": NARROW},
}


def small_config(family: str, layers: int = 2, **settings: Any) -> Any:  # noqa: ANN401
    sizes: dict[str, Any] = dict(
        vocab_size=ROWS + 50,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        num_labels=3,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
        initializer_range=0.15,  # wide enough that answers differ from text to text
    )
    if family == "DistilBert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    kind = getattr(transformers, f"{family}Config")
    return kind(**{**sizes, **_SETTINGS.get(family, {}), **settings})


def small_model(
    family: str,
    head: str = "ForSequenceClassification",
    *,
    layers: int = 2,
    seed: int = 0,
    **settings: Any,  # noqa: ANN401
) -> PreTrainedModel:
    """A model in eval mode, with a channel thirty times as wide as the others."""
    torch.manual_seed(seed)
    config = small_config(family, layers, **settings)
    model: PreTrainedModel = getattr(transformers, f"{family}{head}")(config)
    names = dict(unroll(model).named_modules())  # with the model's own Parameters
    with torch.no_grad():
        for number, layer in enumerate(describe(model).layers):
            # A weight that several layers share is made wide once.
            if layer.first == number:
                norm: Any = names[layer.output_norm]
                norm.weight[7] *= 30.0
                inner: Any = names[layer.intermediate.linears[0]]
                inner.bias.normal_(0.0, 0.3)
    model.train(False)
    return model


def quantized(model: PreTrainedModel, **slots: Any) -> Quantized:  # noqa: ANN401
    recipe = Recipe(name="test", task="none", model="none", **slots)
    batches = [batch_of(8, 12, seed=1), batch_of(4, 30, seed=2)]
    return quantize(model, batches, recipe=recipe, reachable_rows=ROWS)


def quantized_for(model: PreTrainedModel, bits: int, target: str) -> PreTrainedModel:
    """A model with the inputs that a target takes, nearest codes, and groups of 16 in 4 bits."""
    recipe = with_bits(Recipe(name="test", task="none", model="none"), bits)
    groups = {"weights.group": 16, "embeddings.group": 16} if bits == 4 else {}
    recipe = with_changes(recipe, {"rounding": {"name": "nearest"}, **groups})
    recipe = with_target(recipe, target)
    return quantize(model, [batch_of(4, 10)], recipe=recipe, reachable_rows=ROWS).model


def answers_of(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    plan = describe(model)
    with torch.no_grad():
        result: torch.Tensor = model(**{n: batch[n] for n in plan.arguments})[plan.output]
    return result
