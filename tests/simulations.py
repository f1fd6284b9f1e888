"""Naive recipes of full quantization, and what tests ask of the models made by them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit.recipe import Recipe, parse_recipe
from quantkit.simulation import FakeQuantizer, Simulated, simulate
from tests.conftest import ROWS, batch_of

NAIVE: dict[str, Any] = {"weights": {"per": "tensor"}, "smoothing": {"name": "none"}, "skip": []}
BATCHES = [batch_of(8, 12, seed=1), batch_of(4, 30, seed=2)]


def naive(**activations: Any) -> Recipe:  # noqa: ANN401
    values = {**NAIVE, "activations": {"scope": "all", **activations}}
    return parse_recipe({"name": "test", "task": "none", "model": "none", **values}, "test")


def made(model: PreTrainedModel, **activations: Any) -> Simulated:  # noqa: ANN401
    return simulate(model, BATCHES, recipe=naive(**activations), reachable_rows=ROWS)


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    arguments = ("input_ids", "attention_mask")
    with torch.no_grad():
        result = model(**{name: batch[name] for name in arguments})
    answer: Tensor = result["logits" if "logits" in result else "last_hidden_state"]
    return answer


def quantizers(model: nn.Module) -> dict[str, FakeQuantizer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantizer)}
