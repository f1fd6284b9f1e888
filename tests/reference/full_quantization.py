"""A fully quantized BERT classifier in NumPy float64, written from the definitions alone.

It shares nothing with `quantkit.simulation` but the names of stored arrays: codes and scales of the
weights, scales and zero points of the tensors.
"""

import math
from collections.abc import Mapping

import numpy as np

__all__ = ["bert_logits"]

Arrays = Mapping[str, np.ndarray]
LAST_CODE = 255  # of 8 bits


def bert_logits(
    arrays: Arrays, ids: np.ndarray, mask: np.ndarray, layers: int, heads: int
) -> Arrays:
    """Logits of a sequence classifier [texts, labels], and every tensor on the way by name.

    `ids` and `mask` are [texts, tokens]; token types are all 0.
    """
    seen: dict[str, np.ndarray] = {}

    def on_grid(name: str, x: np.ndarray) -> np.ndarray:
        scale, zero = arrays[f"{name}.scale"], arrays[f"{name}.zero_point"].astype(np.float64)
        codes = np.clip(np.rint(x / scale) + zero, 0, LAST_CODE)
        seen[name] = (codes - zero) * scale
        return seen[name]

    def matrix(name: str) -> np.ndarray:
        return arrays[f"{name}.codes"].astype(np.float64) * arrays[f"{name}.scale"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        inside = f"{name}.module"
        return on_grid(f"{name}.made", x @ matrix(inside).T + arrays[f"{inside}.bias"])

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = on_grid(f"{name}.read", x)
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        normal = (x - x.mean(-1, keepdims=True)) / spread
        weight, bias = arrays[f"{name}.module.weight"], arrays[f"{name}.module.bias"]
        return on_grid(f"{name}.made", normal * weight + bias)

    def attention(inside: str, x: np.ndarray) -> np.ndarray:
        texts, tokens, width = x.shape
        query, key, value = (
            linear(f"{inside}.{part}", x).reshape(texts, tokens, heads, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(width // heads)
        scores = on_grid(f"{inside}.quantizers.scores", scores)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        shares = powers / powers.sum(-1, keepdims=True)
        shares = on_grid(f"{inside}.quantizers.probabilities", shares)
        return np.asarray((shares @ value).transpose(0, 2, 1, 3).reshape(texts, tokens, width))

    tables = "bert.embeddings"
    positions = matrix(f"{tables}.position_embeddings")[: ids.shape[1]]
    types = arrays[f"{tables}.token_type_embeddings.weight"][0]  # stays in float
    x = norm(f"{tables}.LayerNorm", matrix(f"{tables}.word_embeddings")[ids] + types + positions)
    for number in range(layers):
        inside = f"bert.encoder.layer.{number}"
        context = attention(f"{inside}.attention.self", x)
        out = f"{inside}.attention.output"
        x = norm(
            f"{out}.LayerNorm", linear(f"{out}.dense", on_grid(f"{out}.dense.read", context)) + x
        )
        wide = gelu(linear(f"{inside}.intermediate.dense", x))
        out = f"{inside}.output"
        x = norm(f"{out}.LayerNorm", linear(f"{out}.dense", on_grid(f"{out}.dense.read", wide)) + x)
    pooled = np.tanh(linear("bert.pooler.dense", x[:, 0]))
    linear("classifier", on_grid("classifier.read", pooled))
    return seen


def gelu(x: np.ndarray) -> np.ndarray:
    """X times the normal distribution's integral up to x."""
    integral = np.vectorize(lambda value: 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))))
    return np.asarray(x * integral(x))
