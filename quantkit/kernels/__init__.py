"""Triton kernels, each with the plain torch function that it is held against."""

from quantkit.kernels.attention import attention
from quantkit.kernels.embedding import Table, add_rows
from quantkit.kernels.inputs import FLOATS, Codes, Function, Reads, apply
from quantkit.kernels.layer_norm import layer_norm
from quantkit.kernels.matrix import Matrix
from quantkit.kernels.product import Operand, product

__all__ = [
    "FLOATS",
    "Codes",
    "Function",
    "Matrix",
    "Operand",
    "Reads",
    "Table",
    "add_rows",
    "apply",
    "attention",
    "layer_norm",
    "product",
]
