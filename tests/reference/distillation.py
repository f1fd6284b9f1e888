"""Distances to a teacher, restated in NumPy row by row and token by token, in float64."""

from collections.abc import Sequence

import numpy as np


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max())
    result: np.ndarray = exponents / exponents.sum()
    return result


def divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """KL(teacher || student) of two distributions."""
    return float(sum(t * np.log(t / s) for t, s in zip(teacher, student, strict=True)))


def classes(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton et al. 2015: the sum over answers [n, classes], times the square of T."""
    total = 0.0
    for ours, theirs in zip(student.astype(float), teacher.astype(float), strict=True):
        total += divergence(softmax(theirs / temperature), softmax(ours / temperature))
    return temperature**2 * total


def outcomes(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Several labels: each has two outcomes, and a sigmoid is a softmax over (logit, 0)."""
    pairs = [np.stack([each.ravel(), np.zeros(each.size)], 1) for each in (student, teacher)]
    return classes(pairs[0], pairs[1], temperature)


def normal(token: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1, but for what keeps a constant vector from a division by 0."""
    result: np.ndarray = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
    return result


def hidden(
    student: Sequence[np.ndarray], teacher: Sequence[np.ndarray], normalize: bool
) -> list[float]:
    """Mean squared error of each text's tokens [tokens, width], which are not padded."""
    result = []
    for ours, theirs in zip(student, teacher, strict=True):
        rows = []
        for a, b in zip(ours.astype(float), theirs.astype(float), strict=True):
            one, other = (normal(a), normal(b)) if normalize else (a, b)
            rows.append(np.mean((one - other) ** 2))
        result.append(float(np.mean(rows)))
    return result


def relations(
    student: Sequence[np.ndarray], teacher: Sequence[np.ndarray], heads: int
) -> list[float]:
    """MiniLMv2 (Wang et al. 2021), equations 6 to 8: of each text, the mean over heads, tokens."""
    result = []
    for ours, theirs in zip(student, teacher, strict=True):
        found = []
        for head in range(heads):
            a, b = (np.split(x.astype(float), heads, axis=1)[head] for x in (ours, theirs))
            for token in range(len(a)):
                mine = softmax(a[token] @ a.T / np.sqrt(a.shape[1]))
                right = softmax(b[token] @ b.T / np.sqrt(b.shape[1]))
                found.append(divergence(right, mine))
        result.append(float(np.mean(found)))
    return result
