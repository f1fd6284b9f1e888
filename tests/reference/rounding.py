"""Rounding of a weight [out, in] for inputs, restated in NumPy from the papers.

Nothing here is fast: an inverse is taken and updated in full, and where it is small enough
every choice is tried.
"""

import itertools

import numpy as np


def output_error(
    weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, inputs: np.ndarray
) -> np.ndarray:
    """Mean squared error [out] of the outputs for `inputs` [tokens, in], from the outputs."""
    exact = inputs.astype(np.float64) @ weight.astype(np.float64).T
    rounded = inputs.astype(np.float64) @ (codes * scale.astype(np.float64)).T
    error: np.ndarray = np.square(rounded - exact).mean(0)
    return error


def column_by_column(
    weight: np.ndarray,
    scale: np.ndarray,
    hessian: np.ndarray,
    damping: float,
    order: np.ndarray,
    limit: int,
) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ as Optimal Brain Quantization in a given order (arXiv 2210.17323, eq. 2 and 3).

    After each column the columns to come move by -error / [H⁻¹]_kk · [H⁻¹]_k, and column k is
    eliminated from the inverse.

    Returns:
        Codes [out, in] in -limit..limit, and how far each quotient was from the nearest
        boundary between two codes [out, in].
    """
    work = weight.astype(np.float64)
    scale = np.broadcast_to(scale, weight.shape)
    mean = np.trace(hessian) / len(hessian)
    inverse = np.linalg.inv(hessian.astype(np.float64) + damping * mean * np.eye(len(hessian)))
    codes, margin = np.zeros(weight.shape, np.int64), np.zeros(weight.shape)
    for done, k in enumerate(order):
        quotient = work[:, k].astype(np.float32) / scale[:, k]
        codes[:, k] = np.clip(np.rint(quotient), -limit, limit)
        margin[:, k] = np.abs(np.abs(quotient - np.floor(quotient)) - 0.5)
        error = (work[:, k] - codes[:, k] * scale[:, k]) / inverse[k, k]
        later = order[done + 1 :]
        work[:, later] -= np.outer(error, inverse[k, later])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return codes, margin


def best_up_or_down(
    weight: np.ndarray, scale: np.ndarray, hessian: np.ndarray, limit: int
) -> np.ndarray:
    """The least error [out] of all roundings up or down, by trying each of them."""
    quotient = weight.astype(np.float64) / scale
    lower = np.clip(np.floor(quotient), -limit, limit)
    upper = np.clip(np.ceil(quotient), -limit, limit)
    best = np.full(len(weight), np.inf)
    for choice in itertools.product([False, True], repeat=weight.shape[1]):
        error = np.where(choice, upper, lower) * scale - weight
        best = np.minimum(best, np.einsum("oi,ij,oj->o", error, hessian, error))
    return best
