"""Random rows, and 4-bit recipes for small models, that tests of sensitivity and budgets share."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from quantkit.batching import Encoded
from quantkit.encoder import head_of
from quantkit.ragged import Ragged
from quantkit.recipe import Recipe, with_changes
from tests.conftest import ROWS, batch_of

FRAGILE = tuple(f"bert.encoder.layer.0.attention.self.{n}" for n in ("query", "key", "value"))
CALIBRATION = [batch_of(8, 12, seed=1), batch_of(4, 20, seed=2)]


def recipe_of_bits(bits: int, **changes: Any) -> Recipe:  # noqa: ANN401
    """Widths of small models are no multiples of 32."""
    values: dict[str, Any] = {"weights.bits": bits, "embeddings.bits": bits}
    values |= {"embeddings.frequent": 8} if bits == 4 else {}
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return with_changes(Recipe("test", "none", "none"), values | named)


def rows_for(model: PreTrainedModel, count: int, seed: int) -> Encoded:
    """Texts of random tokens with random labels."""
    random = np.random.default_rng(seed)
    head = head_of(model)
    ids = [random.integers(5, ROWS, int(random.integers(4, 12))) for _ in range(count)]
    labels: Any = random.integers(0, max(1, len(head.labels)), count)
    words = None
    if head.kind == "regression":
        labels = random.normal(size=count)
    if head.kind == "multilabel":
        labels = random.integers(0, 2, (count, len(head.labels)))
    if head.kind == "words":
        labels = Ragged.of(
            [random.integers(0, len(head.labels), len(row)) for row in ids], np.int32
        )
        words = Ragged.of([np.arange(len(row)) for row in ids], np.int32)
    return Encoded(
        head,
        Ragged.of(ids, np.int32),
        Ragged.of([np.zeros(len(row), np.int8) for row in ids], np.int8),
        labels,
        np.arange(count),
        words,
    )


def make_fragile(model: PreTrainedModel) -> None:
    """Wide weights on a channel that is always 0: harmless in float, ruinous on one 4-bit scale."""
    value: Any = model.get_submodule(FRAGILE[-1])
    norm: Any = model.get_submodule("bert.embeddings.LayerNorm")
    with torch.no_grad():
        norm.weight[5] = norm.bias[5] = 0.0
        value.weight[:, 5] = 40.0 * value.weight.std()
