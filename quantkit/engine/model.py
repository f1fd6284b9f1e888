"""The BERT family once more, as a chain of fused steps over packed tokens.

Per layer seven steps: four products, an attention and two normalisations. Each leaves its result
as the next one reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise

import torch
from torch import Tensor

from quantkit.encoder import HeadPlan, LayerPlan
from quantkit.engine.batch import Packed
from quantkit.engine.checkpoint import Checkpoint
from quantkit.engine.products import (
    FLOAT_DTYPES,
    Precision,
    Product,
    make_product,
)
from quantkit.kernels import FLOATS, Codes, Function, Reads, Table, add_rows, apply, attention
from quantkit.kernels import layer_norm as norm_kernel

__all__ = ["Encoder", "build"]

_HEAD_FUNCTIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
}


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's weights, float32 [width]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(
        self, x: Tensor, residual: Tensor | None, reads: Reads, dtype: torch.dtype
    ) -> tuple[Tensor, Codes | None]:
        return norm_kernel(x, residual, self.weight, self.bias, self.eps, reads, dtype)


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    query_key_value: Product
    attention_output: Product
    attention_norm: Norm
    intermediate: Product
    output: Product
    output_norm: Norm


@dataclass(frozen=True)
class Encoder:
    """A model on a device, in the dtype of its residual stream."""

    tables: tuple[Table, Table | None, Table]  # words, types, positions
    embedding_norm: Norm
    projection: Product | None
    layers: tuple[Layer, ...]
    function: Function
    heads: int
    head: HeadPlan
    dense: Product | None
    classifier: Product | None
    dtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, batch: Packed) -> Tensor:
        """Float32 [texts, outputs]; of words and features [tokens, outputs]."""
        hidden, codes = self._embed(batch)
        for layer, following in pairwise(self.layers):
            context = self._attend(layer, hidden, codes, batch)
            reads = following.query_key_value.reads
            hidden, codes = self._rest(layer, context, hidden, reads)
        last = self.layers[-1]
        context = self._attend(last, hidden, codes, batch)
        if self.head.first_only:  # nothing reads the other tokens any more
            # A text without tokens begins behind the last token.
            first = batch.starts[:-1].clamp(max=batch.shape.tokens - 1)
            context = context.of(first) if isinstance(context, Codes) else context[first]
            hidden = hidden[first]
        return self._answer(self._rest(last, context, hidden, FLOATS)[0])

    def weight_bytes(self) -> int:
        """Memory of all that the model holds, as it lies on the device; nothing counted twice."""
        seen: dict[int, int] = {}
        waiting: list[object] = [self]
        while waiting:
            part = waiting.pop()
            if isinstance(part, Tensor):
                seen[part.data_ptr()] = part.numel() * part.element_size()
            elif isinstance(part, tuple):
                waiting += part
            elif is_dataclass(part):
                waiting += (getattr(part, field.name) for field in fields(part))
        return sum(seen.values())

    def _embed(self, batch: Packed) -> tuple[Tensor, Codes | None]:
        words, types, positions = self.tables
        # The order of additions is transformers'.
        total = add_rows(words, batch.ids, None)
        if types is not None:
            total = add_rows(types, batch.types, total)
        total = add_rows(positions, batch.positions, total)
        first = self.layers[0].query_key_value.reads
        if self.projection is None:
            return self.embedding_norm(total, None, first, self.dtype)
        narrow, codes = self.embedding_norm(total, None, self.projection.reads, self.dtype)
        wide = _floats(self.projection(narrow if codes is None else codes))
        return wide, apply(wide, "none", first)[1]

    def _attend(
        self, layer: Layer, hidden: Tensor, codes: Codes | None, batch: Packed
    ) -> Tensor | Codes:
        merged = _floats(layer.query_key_value(hidden if codes is None else codes))
        reads = layer.attention_output.reads
        return attention(merged, batch.starts, batch.shape.longest, self.heads, reads)

    def _rest(
        self, layer: Layer, context: Tensor | Codes, hidden: Tensor, following: Reads
    ) -> tuple[Tensor, Codes | None]:
        """What follows attention, for all tokens or some."""
        projected = _floats(layer.attention_output(context))
        hidden, codes = layer.attention_norm(
            projected, hidden, layer.intermediate.reads, self.dtype
        )
        inner = layer.intermediate(
            hidden if codes is None else codes, self.function, layer.output.reads
        )
        made = _floats(layer.output(inner))
        return layer.output_norm(made, hidden, following, self.dtype)

    def _answer(self, hidden: Tensor) -> Tensor:
        hidden = hidden.float()
        if self.dense is not None:
            hidden = _HEAD_FUNCTIONS[self.head.function](_through(self.dense, hidden))
        return hidden if self.classifier is None else _through(self.classifier, hidden)


def build(source: Checkpoint, precision: Precision, dtype: torch.dtype) -> Encoder:
    """The model of a checkpoint.

    Args:
        source: its tensors lie on the device that it is to run on.
        precision: of the products.
        dtype: of the residual stream; that of a float precision goes before it.
    """
    dtype = FLOAT_DTYPES.get(precision, dtype)
    plan = source.plan
    embedding, head = plan.embedding, plan.head
    projection = embedding.projection
    return Encoder(
        tables=(
            _table(source, embedding.words, dtype),
            None if embedding.types is None else _table(source, embedding.types, dtype),
            _table(source, embedding.positions, dtype),
        ),
        embedding_norm=_norm(source, embedding.norm),
        projection=None
        if projection is None
        else make_product(source, projection, projection, precision, dtype),
        layers=tuple(
            _layer(source, layer, plan.layers[layer.first], precision, dtype)
            for layer in plan.layers
        ),
        function=source.function,
        heads=plan.heads,
        head=head,
        # The head is small, and what it says is the answer: its floats are float32.
        dense=None
        if head.dense is None
        else make_product(source, head.dense, head.dense, _of_head(precision), torch.float32),
        classifier=None
        if head.classifier is None
        else make_product(
            source, head.classifier, head.classifier, _of_head(precision), torch.float32
        ),
        dtype=dtype,
    )


def _of_head(precision: Precision) -> Precision:
    return "packed" if precision == "packed" else "float32"


def _layer(
    source: Checkpoint, plan: LayerPlan, first: LayerPlan, precision: Precision, dtype: torch.dtype
) -> Layer:
    products = [
        make_product(source, shared, stored, precision, dtype)
        for shared, stored in zip(plan.inputs, first.inputs, strict=True)
    ]
    return Layer(
        query_key_value=products[0],
        attention_output=products[1],
        attention_norm=_norm(source, first.attention_norm),
        intermediate=products[2],
        output=products[3],
        output_norm=_norm(source, first.output_norm),
    )


def _norm(source: Checkpoint, name: str) -> Norm:
    weight, bias = (source.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
    return Norm(weight.float(), bias.float(), source.eps[name])


def _table(source: Checkpoint, name: str, dtype: torch.dtype) -> Table:
    """As the checkpoint has it: a table of integers stays one in every precision."""
    integers = source.integers(name)
    if integers is None:
        weight = source.tensors[f"{name}.weight"].to(dtype)
        return Table(weight, weight.shape[1])
    frequent = (source.tensors.get(f"{name}.frequent_{part}") for part in ("rows", "codes"))
    return Table.of(integers, *frequent)


def _through(product: Product, x: Tensor) -> Tensor:
    """A product of floats that nothing has quantized on the way."""
    codes = apply(x, "none", product.reads)[1]
    return _floats(product(x if codes is None else codes))


def _floats(x: Tensor | Codes) -> Tensor:
    if isinstance(x, Codes):
        raise TypeError("floats were asked for")
    return x
