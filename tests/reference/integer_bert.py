"""A BERT classifier in integers, in NumPy, from the tensors of a packed checkpoint alone.

Written from the definitions: ONNX's QuantizeLinear, sums of integer products in int64, one float32
scaling at the end, and BERT's paper. It shares no code with quantkit, torch or ONNX Runtime, and
reads the files' own bytes by safetensors. Of a float checkpoint it is the float model.

    word rows, weights     scale[row] * (multiplier[row, group] * code[row, column])
    codes of an input      saturate(round_half_even(x * smoothing / scale) + zero_point)
    product                float32(sum of (code - zero_point) * weight) * (s_input * s_w) + bias
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.reference.integers import integer_matmul, quantize_linear

__all__ = ["IntegerBert", "read"]

Array = np.ndarray
LAYER = "bert.encoder.layer"
EMBEDDINGS = "bert.embeddings"


@dataclass(frozen=True)
class IntegerBert:
    """Tensors by name; `dtype` is what everything but integers is computed in."""

    arrays: Mapping[str, Array]
    layers: int
    heads: int
    dtype: type[np.floating] = np.float32

    def logits(self, ids: Array, mask: Array, types: Array) -> Array:
        """[texts, labels] of int64 [texts, tokens]."""
        hidden = self.embedded(ids, types)
        for at in range(self.layers):
            hidden = self.layer(at, hidden, mask)
        pooled = np.tanh(self.linear("bert.pooler.dense", hidden[:, 0]))
        return self.linear("classifier", pooled)

    def embedded(self, ids: Array, types: Array) -> Array:
        """What the first layer reads [texts, tokens, width]."""
        words, places, kinds = (
            self.rows(f"{EMBEDDINGS}.{table}_embeddings", at)
            for table, at in (
                ("word", ids),
                ("position", np.arange(ids.shape[1])),
                ("token_type", types),
            )
        )
        return self.norm(f"{EMBEDDINGS}.LayerNorm", words + kinds + places)

    def layer(self, at: int, hidden: Array, mask: Array) -> Array:
        """One encoder layer."""
        name = f"{LAYER}.{at}"
        context = self.attention(self.query_key_value(at, hidden), mask)
        projected = self.linear(f"{name}.attention.output.dense", context)
        middle = self.norm(f"{name}.attention.output.LayerNorm", projected + hidden)
        active = gelu(self.linear(f"{name}.intermediate.dense", middle))
        return self.norm(
            f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", active) + middle
        )

    def query_key_value(self, at: int, hidden: Array) -> Array:
        """The three projections side by side; query's input quantizer serves all."""
        inside = f"{LAYER}.{at}.attention.self"
        parts = [f"{inside}.{part}" for part in ("query", "key", "value")]
        return np.concatenate([self.linear(part, hidden, reader=parts[0]) for part in parts], -1)

    def attention(self, merged: Array, mask: Array) -> Array:
        """Softmax attention [texts, tokens, width] of projections side by side."""
        texts, tokens, width = merged.shape
        split = merged.reshape(texts, tokens, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        query, key, value = split
        scores = query @ key.swapaxes(-1, -2) / self.dtype(math.sqrt(query.shape[-1]))
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        shares = powers / powers.sum(-1, keepdims=True)
        return np.asarray((shares @ value).swapaxes(1, 2).reshape(texts, tokens, width // 3))

    def norm(self, name: str, x: Array) -> Array:
        """LayerNorm; its sums in float64, as any order of float32 sums is."""
        wide = x.astype(np.float64)
        normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(
            wide.var(-1, keepdims=True) + 1e-12
        )
        weight, bias = self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]
        return np.asarray((normal * weight + bias).astype(self.dtype))

    def linear(self, name: str, x: Array, reader: str = "") -> Array:
        """X times W transposed, plus b: in integers where the checkpoint holds them."""
        bias = self.arrays[f"{name}.bias"]
        if f"{name}.codes" not in self.arrays:
            weight = self.arrays[f"{name}.weight"].astype(self.dtype)
            return np.asarray((x @ weight.T + bias).astype(self.dtype))
        reader = reader or name
        return np.asarray(self.product(name, self.codes(reader, x), reader).astype(self.dtype))

    def codes(self, reader: str, x: Array) -> Array:
        """Codes 0..255 of what the Linear `reader` reads."""
        scale, zero = (self.arrays[f"{reader}.input.{part}"] for part in ("scale", "zero_point"))
        smoothing = self.arrays.get(f"{reader}.input.multiplier")
        return quantize_linear(x if smoothing is None else x * smoothing, scale, zero, 0, 255)

    def product(self, name: str, codes: Array, reader: str = "") -> Array:
        """Float32 [..., out] of codes, exact but for the scaling."""
        reader = reader or name
        return integer_matmul(
            codes,
            float(self.arrays[f"{reader}.input.scale"]),
            int(self.arrays[f"{reader}.input.zero_point"]),
            self.weight(name),
            self.arrays[f"{name}.scale"][:, 0],
            self.arrays[f"{name}.bias"],
        )

    def weight(self, name: str) -> Array:
        """Int64 [rows, columns]: codes times their groups' multipliers."""
        codes = self.arrays[f"{name}.codes"]
        if codes.dtype == np.uint8:  # two codes of 4 bits a byte, low nibble first
            pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
            codes = pairs.astype(np.int64) - 16 * (pairs > 7)
        wide = codes.astype(np.int64)
        if (groups := self.arrays.get(f"{name}.multipliers")) is not None:
            wide *= np.repeat(groups.astype(np.int64), wide.shape[1] // groups.shape[1], axis=1)
        if (rows := self.arrays.get(f"{name}.frequent_rows")) is not None:
            wide[rows] = self.arrays[f"{name}.frequent_codes"]
        return wide

    def rows(self, table: str, at: Array) -> Array:
        """Rows `at` of an embedding table."""
        if f"{table}.codes" in self.arrays:
            values = self.weight(table)[at] * self.arrays[f"{table}.scale"][at]
        else:
            values = self.arrays[f"{table}.weight"][at]
        return np.asarray(values).astype(self.dtype)


def gelu(x: Array) -> Array:
    """X Phi(x), by the error function (Hendrycks and Gimpel 2016)."""
    error = np.vectorize(math.erf)(x / math.sqrt(2.0))
    return np.asarray((x * 0.5 * (1.0 + error)).astype(x.dtype))


def read(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file."""
    tensors: dict[str, Array] = load_file(path)
    return tensors
