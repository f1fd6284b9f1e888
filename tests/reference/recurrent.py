"""Both recurrent cells from scratch in NumPy, one text and one step at a time, in float64.

Written from the cells' formulas: an RNN's state is h = tanh(W x + U h + b), and an LSTM's

    i = sigmoid(W_i x + U_i h + b_i)    c = f * c + i * tanh(W_c x + U_c h + b_c)
    f = sigmoid(W_f x + U_f h + b_f)    h = o * tanh(c)
    o = sigmoid(W_o x + U_o h + b_o)
"""

from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]  # under the names of the checkpoint


def classify(
    weights: Weights, cell: str, rows: Sequence[Sequence[int]], padded_length: int | None = None
) -> np.ndarray:
    """Logits [rows, classes] of token ids without padding.

    With `padded_length` every row is filled up to it with id 0, which is then read as a word.
    """
    return np.stack([_logits(weights, cell, list(row), padded_length) for row in rows])


def run(
    cell: str, x: np.ndarray, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """The states [steps, units] of one direction that reads `x` [steps, inputs] downwards."""
    units = recurrent_kernel.shape[1]
    hidden, memory, states = np.zeros(units), np.zeros(units), []
    for vector in x:
        total = kernel @ vector + recurrent_kernel @ hidden + bias
        if cell == "rnn":
            hidden = np.tanh(total)
        else:
            enter, forget, candidate, leave = total.reshape(4, units)
            memory = _sigmoid(forget) * memory + _sigmoid(enter) * np.tanh(candidate)
            hidden = _sigmoid(leave) * np.tanh(memory)
        states.append(hidden)
    return np.array(states).reshape(len(x), units)


def _logits(weights: Weights, cell: str, ids: list[int], padded_length: int | None) -> np.ndarray:
    if padded_length is not None:
        ids = (ids + [0] * padded_length)[:padded_length]
    exact = {name: values.astype(np.float64) for name, values in weights.items()}
    x = exact["recurrent.embeddings.word_embeddings.weight"][np.array(ids, dtype=int)]
    layer, last = 0, np.zeros(0)
    while f"recurrent.layers.{layer}.0.kernel" in exact:
        states = _direction(exact, f"recurrent.layers.{layer}.0", cell, x)
        last = _last(states)
        if f"recurrent.layers.{layer}.1.kernel" in exact:
            backwards = _direction(exact, f"recurrent.layers.{layer}.1", cell, x[::-1])
            last = np.concatenate([last, _last(backwards)])
            states = np.concatenate([states, backwards[::-1]], axis=1)
        x, layer = states, layer + 1
    answer: np.ndarray = exact["classifier.weight"] @ last + exact["classifier.bias"]
    return answer


def _direction(weights: Weights, name: str, cell: str, x: np.ndarray) -> np.ndarray:
    parts = (weights[f"{name}.{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
    return run(cell, x, *parts)


def _last(states: np.ndarray) -> np.ndarray:
    """The state behind the last step; zeros before the first one."""
    return states[-1] if len(states) else np.zeros(states.shape[1])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
