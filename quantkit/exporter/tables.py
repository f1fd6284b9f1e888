"""Rows of a quantized embedding table, read without making the table any larger.

A 4-bit table lies in memory as it lies in the file, two codes a byte: column `j` in the low
half, column `j + dim / 2` in the high one, each 8 more than its code. The bytes of a text's
own rows are taken apart after they were looked up, a few thousand numbers a text, in exact
integers. What was measured beside it stands in docs/architecture.md.
"""

from typing import Any

import numpy as np
import onnx

from quantkit.exporter.graph import GraphWriter
from quantkit.exporter.initializers import Initializers, array, as_floats
from quantkit.modules import QuantEmbedding

__all__ = ["TableWriter"]

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
LAST = np.array([-1])  # axis


class TableWriter:
    """Writes the lookup of quantized rows with operators of the ONNX standard."""

    def __init__(
        self, graph: GraphWriter, initializers: Initializers, floats: "np.dtype[Any] | None" = None
    ) -> None:
        self._graph = graph
        self._initializers = initializers
        self._floats = floats or np.dtype(np.float32)

    def rows(self, name: str, table: QuantEmbedding, ids: str) -> str:
        """Rows `ids` [...] of the table as float32 [..., dim]."""
        if table.bits == 8:
            codes = self._lookup(f"{name}.codes", array(table.codes), ids)
        else:
            codes = self._frequent(name, table, ids, self._halves(name, table, ids))
        scale = self._lookup(f"{name}.scale", array(table.scale), ids)
        return self._graph.add("Mul", codes, scale)

    def _lookup(self, name: str, values: np.ndarray, ids: str) -> str:
        """Rows of an initializer, as floats."""
        if values.dtype == np.float32:
            values = as_floats(name, values, self._floats)
        found = self._graph.add("Gather", self._graph.constant(name, values), ids)
        if values.dtype == self._floats:
            return found
        kind = onnx.helper.np_dtype_to_tensor_dtype(self._floats)
        return self._graph.add("Cast", found, to=kind)

    def _halves(self, name: str, table: QuantEmbedding, ids: str) -> str:
        """4-bit codes times their groups' multipliers, as float32 [..., dim]."""
        graph, width = self._graph, table.integers.shape[1]
        shifted = (array(table.integers.codes) + 8).astype(np.uint8)
        low, high = shifted[:, : width // 2], shifted[:, width // 2 :]
        both = graph.add("Gather", graph.constant(f"{name}.codes", low | (high << 4)), ids)
        four, mask = graph.constant("four", np.uint8(4)), graph.constant("low_half", np.uint8(15))
        halves = (
            graph.add("BitwiseAnd", both, mask),
            graph.add("BitShift", both, four, direction="RIGHT"),
        )
        codes = graph.add("Cast", graph.add("Concat", *halves, axis=-1), to=FLOAT)
        codes = graph.add("Sub", codes, graph.constant("eight", np.float32(8)))
        if table.multipliers is None:
            return codes
        groups = table.multipliers.shape[1]
        factors = self._lookup(f"{name}.multipliers", array(table.multipliers), ids)
        factors = graph.add("Unsqueeze", factors, graph.constant("last", LAST))
        # 0 would copy an axis, which a lookup of one or of two axes does not place alike.
        grouped = self._shape_of(ids, f"{name}/grouped", (groups, width // groups))
        product = graph.add("Mul", graph.add("Reshape", codes, grouped), factors)
        return graph.add("Reshape", product, self._shape_of(ids, f"{name}/whole", (width,)))

    def _shape_of(self, ids: str, name: str, end: tuple[int, ...]) -> str:
        graph = self._graph
        return graph.add(
            "Concat", graph.add("Shape", ids), graph.constant(name, np.array(end)), axis=0
        )

    def or_frequent(self, name: str, table: QuantEmbedding, ids: str, rows: str) -> str:
        """`rows`, which are scaled, or the 8-bit ones of those that have them."""
        if table.frequent_rows is None:
            return rows
        is_frequent, codes = self._frequent_codes(name, table, ids)
        scale = self._lookup(f"{name}.scale", array(table.scale), ids)
        return self._graph.add("Where", is_frequent, self._graph.add("Mul", codes, scale), rows)

    def _frequent(self, name: str, table: QuantEmbedding, ids: str, codes: str) -> str:
        """`codes`, or the 8-bit ones of rows that have them."""
        if table.frequent_rows is None:
            return codes
        is_frequent, found = self._frequent_codes(name, table, ids)
        return self._graph.add("Where", is_frequent, found, codes)

    def _frequent_codes(self, name: str, table: QuantEmbedding, ids: str) -> tuple[str, str]:
        """Which ids have 8-bit codes [..., 1], and these [..., dim]; zeros for all others."""
        if table.frequent_rows is None or table.frequent_codes is None:
            raise ValueError(f"{name} has no frequent rows")
        graph = self._graph
        rows, exact = array(table.frequent_rows), array(table.frequent_codes)
        # Each row's place among the frequent ones, from 1 on; row 0 of their codes is nobody's.
        places = np.zeros(table.integers.shape[0], np.int16 if len(rows) < 2**15 else np.int32)
        places[rows] = np.arange(1, len(rows) + 1)
        place = graph.add("Gather", graph.constant(f"{name}.frequent_places", places), ids)
        place = graph.add("Cast", place, to=INT64)
        padded = np.concatenate([np.zeros_like(exact[:1]), exact])
        found = self._lookup(f"{name}.frequent_codes", padded, place)
        place = graph.add("Unsqueeze", place, graph.constant("last", LAST))
        return graph.add("Greater", place, graph.constant("zero", np.array(0))), found
