"""Trainable modules: what a quantized module computes, with gradients to weights and ranges.

Each stands where post-training quantization put an integer module, starts with its very codes,
and gives its integers back. In eval mode and without gradients products are computed in integers:
then a trained model's answers are the packed one's bit for bit.

They are ordinary modules, whose parameters any optimizer updates. A forward pass changes no
result of a later one: what `Ema` takes in of a batch counts from the next `set_progress` on.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quantkit.algorithms.trained_ranges import Ema, Lsq, Ranges
from quantkit.integers import Integers, in_groups, widened
from quantkit.modules import (
    InputQuantizer,
    QuantEmbedding,
    Quantizer,
    QuantLinear,
    TokenQuantizer,
    among,
)
from quantkit.numerics import (
    Grid,
    fake_quantize,
    integer_linear,
    quantize,
    symmetric_grid,
)
from quantkit.qat.handed import Handed
from quantkit.qat.inputs import InputGrid, Read, fake_input
from quantkit.qat.products import fake_linear, fake_weight
from quantkit.qat.together import RangesTogether, WeightsTogether
from quantkit.qat.watch import RangeWatch, TokenMask
from quantkit.recipe import Weights

__all__ = [
    "FakeQuantEmbedding",
    "FakeQuantInput",
    "FakeQuantLinear",
    "FakeQuantToken",
    "FakeReader",
]


class FakeQuantInput(Quantizer):
    """A static input on its grid: one scale and zero point, learnt, followed or fixed.

    Args:
        start: the quantizer that it starts as.
        ranges: what becomes of its range.
        symmetric: whether the zero point stays in the middle of the grid.
        tokens: where tokens stand in the batch; read with `Ema` alone.
    """

    base_scale: Tensor
    base_zero: Tensor

    def __init__(
        self, start: InputQuantizer, ranges: Ranges, *, symmetric: bool, tokens: TokenMask
    ) -> None:
        super().__init__(_copied(start.multiplier), start.bits, start.rotation)
        learned = isinstance(ranges, Lsq)
        self.register_buffer("base_scale", start.scale.clone())
        self.register_buffer("base_zero", start.zero_point.float())
        self.log_scale = nn.Parameter(torch.zeros(())) if learned else None
        self.offset = nn.Parameter(torch.zeros(())) if learned and not symmetric else None
        self.watch = None
        if isinstance(ranges, Ema):
            self.watch = RangeWatch(start, ranges, symmetric=symmetric, tokens=tokens)
        self.ran = False  # whether a forward pass came by
        self.handed = Handed()
        self.together: RangesTogether | None = None  # of all inputs of the model

    @property
    def scale(self) -> Tensor:
        """The scale as it is now, float32 scalar."""
        return _scaled(self.base_scale, self.log_scale)

    @property
    def zero_point(self) -> Tensor:
        """The zero point before rounding: `offset` is its way in shares of the grid."""
        if self.offset is None:
            return self.base_zero
        return self.base_zero + self.offset * (self.grid.qmax - self.grid.qmin)

    def fake(self, x: Tensor) -> Read:
        """`x` [..., in], multiplied, rotated and put on the grid, as float32."""
        self.ran, multiplier = True, self.multiplier
        if self.rotation is not None:
            x, multiplier = self.as_read(x.float()), None
        if self.watch is not None and self.training:
            self.watch.note(x.detach(), multiplier)
        found = None if self.together is None else self.together.take(self, x)
        scale, zero_point = (self.scale, self.zero_point) if found is None else found
        at = InputGrid(scale, zero_point, self.grid, multiplier)
        return Read(fake_input(x, at), x, at)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of an `x` [..., in] as it is read, the scalar scale and zero point."""
        self.ran = True
        return self.packed().codes(x.float())

    @torch.no_grad()
    def packed(self) -> InputQuantizer:
        """The same as it is deployed."""
        whole = torch.round(self.zero_point).clamp(self.grid.qmin, self.grid.qmax)
        scale = self.scale.detach().clone()
        zero_point = whole.to(self.grid.dtype)
        multiplier = _copied(self.multiplier)
        return InputQuantizer(scale, zero_point, multiplier, self.bits, self.rotation)


class FakeQuantToken(TokenQuantizer):
    """An input whose tokens have a scale each: nothing to learn."""

    def __init__(self, start: TokenQuantizer) -> None:
        super().__init__(_copied(start.multiplier), start.bits, start.rotation)
        self.ran = False  # whether a forward pass came by
        self.handed = Handed()

    def fake(self, x: Tensor) -> Read:
        """`x` [..., in], multiplied, rotated and put on each token's grid, as float32."""
        self.ran = True
        read = self.as_read(x.float())
        with torch.no_grad():
            _, scale, zero_point = self.codes(read)
        return Read(fake_quantize(read, scale, zero_point, self.grid))

    def packed(self) -> TokenQuantizer:
        """The same as it is deployed."""
        return TokenQuantizer(_copied(self.multiplier), self.bits, self.rotation)


FakeReader = FakeQuantInput | FakeQuantToken


class _FakeMatrix(nn.Module):
    """A latent float matrix and the grid that it is trained on.

    Args:
        weight: [rows, columns] float32, with `start`'s codes.
        start: the integers that it starts with.
        grid: of the codes.
        learned: whether the scales are a parameter.
    """

    base_scale: Tensor
    multipliers: Tensor | None

    def __init__(self, weight: Tensor, start: Integers, grid: Grid, *, learned: bool) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(weight)
        self.register_buffer("base_scale", start.scale.clone())
        self.register_buffer("multipliers", _copied(start.multipliers))
        self.log_scale = nn.Parameter(torch.zeros_like(start.scale)) if learned else None
        self.bits = start.bits

    @property
    def scale(self) -> Tensor:
        """The scales as they are now, float32 [rows, 1]."""
        return _scaled(self.base_scale, self.log_scale)

    @torch.no_grad()
    def integers(self) -> Integers:
        """The integers that stand for the weight now."""
        scale = self.scale.detach().clone()
        return Integers.of(self._codes(scale), scale, self.bits, _copied(self.multipliers))

    @torch.no_grad()
    def wide(self, scale: Tensor) -> Tensor:
        """Int8 [rows, columns] as a kernel multiplies with them, at the scale as it is now."""
        return widened(self._codes(scale), self.multipliers)

    def _codes(self, scale: Tensor) -> Tensor:
        return _codes(self.weight.detach(), scale, self.multipliers, self.grid)


class FakeQuantLinear(_FakeMatrix):
    """A Linear whose weight and input are on their grids.

    Args:
        weight: latent [out, in] float32.
        start: the module that it starts as.
        reader: of its input; None: the input stays in float.
        slot: the recipe's, which says what codes and multipliers there are.
        owner: whether the reader is this module's own; else another Linear's.
        learned: whether the scales are a parameter.
    """

    def __init__(
        self,
        weight: Tensor,
        start: QuantLinear,
        reader: FakeReader | None,
        slot: Weights,
        *,
        owner: bool,
        learned: bool,
    ) -> None:
        grid = slot.grid(start.integers.bits)
        super().__init__(weight, start.integers, grid, learned=learned)
        self.largest_multiplier = slot.largest_multiplier
        self.bias = None if start.bias is None else nn.Parameter(start.bias.clone())
        if owner and reader is not None:
            self.input = reader
        elif reader is not None:
            reader.handed.others += 1
        self.owner = owner
        # A tuple keeps a borrowed reader out of this module's state dict.
        self._reads = (reader,)
        self.together: WeightsTogether | None = None  # of all Linears of the model

    @property
    def reader(self) -> FakeReader | None:
        """What reads the input, owned or borrowed; None if it stays in float."""
        return self._reads[0]

    def share(self, other: "FakeQuantLinear") -> None:
        """Hold the very weight, scales and bias of another call of the same Linear."""
        self.weight, self.log_scale, self.bias = other.weight, other.log_scale, other.bias
        self.base_scale, self.multipliers = other.base_scale, other.multipliers

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        reader = self.reader
        if reader is not None and not (self.training or torch.is_grad_enabled()):
            codes, input_scale, zero_point = reader(x)
            scale = self.scale
            return integer_linear(
                codes, input_scale, zero_point, self.wide(scale), scale, self.bias
            )
        read = Read(x) if reader is None else reader.handed.read(reader, x, owner=self.owner)
        made = None if self.together is None else self.together.take(self, read.values)
        if made is not None:
            return nn.functional.linear(read.values, made, self.bias)
        return fake_linear(read, self.weight, self.scale, self.multipliers, self.grid, self.bias)

    def packed(self, integers: Integers, quantizer: Any, *, owner: bool) -> QuantLinear:  # noqa: ANN401
        """The same as it is deployed, of integers and a quantizer that others may share."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return QuantLinear(integers, bias, quantizer, owner=owner)

    def extra_repr(self) -> str:
        """Shape and bits, as `print(model)` shows them."""
        outputs, inputs = self.weight.shape
        return f"in={inputs}, out={outputs}, bits={self.bits}"


class FakeQuantEmbedding(_FakeMatrix):
    """A table whose rows are on their grids: only rows that are read are quantized or trained.

    Args:
        weight: latent [rows, dim] float32.
        start: the module that it starts as.
        padding: the row that gets no gradient, as in `nn.Embedding`; None: every row gets one.
        learned: whether the scales are a parameter.
    """

    frequent_rows: Tensor | None

    def __init__(
        self, weight: Tensor, start: QuantEmbedding, padding: int | None, *, learned: bool
    ) -> None:
        grid = symmetric_grid(start.integers.bits)
        super().__init__(weight, start.integers, grid, learned=learned)
        self.register_buffer("frequent_rows", _copied(start.frequent_rows))
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        """Row numbers [...] -> vectors [..., dim]."""
        lookup = nn.functional.embedding
        rows = lookup(ids, self.weight, self.padding)
        scale = lookup(ids, self.scale)
        multipliers = None if self.multipliers is None else lookup(ids, self.multipliers)
        values = fake_weight(rows, scale, multipliers, self.grid)
        if self.frequent_rows is None:
            return values
        _, frequent = among(self.frequent_rows, ids)
        return torch.where(frequent, fake_weight(rows, scale, None, symmetric_grid(8)), values)

    @torch.no_grad()
    def packed(self) -> QuantEmbedding:
        """The same as it is deployed."""
        integers, rows = self.integers(), self.frequent_rows
        if rows is None:
            return QuantEmbedding(integers)
        exact = _codes(self.weight[rows], integers.scale[rows], None, symmetric_grid(8))
        return QuantEmbedding(integers, rows.clone(), exact)

    def extra_repr(self) -> str:
        """Shape and bits, as `print(model)` shows them."""
        rows, width = self.weight.shape
        return f"rows={rows}, dim={width}, bits={self.bits}"


def _scaled(base: Tensor, logarithm: Tensor | None) -> Tensor:
    # exp(0) is exactly 1: a model that has not been trained has its very first scales.
    return base if logarithm is None else base * logarithm.exp()


def _codes(weight: Tensor, scale: Tensor, multipliers: Tensor | None, grid: Grid) -> Tensor:
    """Codes of `weight` [rows, columns], in the grid's dtype."""
    zero = torch.zeros((), dtype=grid.dtype, device=weight.device)
    if multipliers is None:
        return quantize(weight, scale, zero, grid)
    grouped = in_groups(weight, multipliers.shape[-1])
    step = (scale * multipliers)[..., None]
    return quantize(grouped, step, zero, grid).flatten(-2)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
