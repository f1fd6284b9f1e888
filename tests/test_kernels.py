"""Kernels against `numerics` and `modules`.

Without Triton it is the plain torch functions that run here; `make test-kernels` runs the same
tests through Triton's interpreter.
"""

import importlib
import os

import pytest
import torch
from torch import Tensor

from quantkit.integers import Integers
from quantkit.kernels import (
    FLOATS,
    Codes,
    Matrix,
    Operand,
    Reads,
    Table,
    add_rows,
    apply,
    attention,
    layer_norm,
    product,
)
from quantkit.kernels.matrix import pack_halves, unpack_halves
from quantkit.kernels.product import product_reference
from quantkit.kernels.tuning import HOPPER, SINGLE, Tiles, suitable
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear, TokenQuantizer
from quantkit.numerics import asymmetric_grid, centre, quantize_float8

TOKENS, WIDTH, OUTPUTS = 21, 96, 40


def values(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def static(bits: int = 8, *, multiplied: bool = True) -> tuple[Reads, InputQuantizer]:
    scale, zero_point = torch.tensor(0.031), torch.tensor(101 if bits == 8 else 6).to(torch.uint8)
    scale = scale if bits == 8 else scale * 20
    multiplier = values(WIDTH, seed=9).abs() + 0.5 if multiplied else None
    reads = Reads.static(scale, zero_point, multiplier, bits)
    return reads, InputQuantizer(scale, zero_point, multiplier, bits)


def integers(bits: int, groups: int | None, rows: int = OUTPUTS, width: int = WIDTH) -> Integers:
    generator = torch.Generator().manual_seed(bits)
    top = 127 if bits == 8 else 7
    codes = torch.randint(-top, top + 1, (rows, width), generator=generator).to(torch.int8)
    scale = values(rows, 1, seed=3).abs() * 0.01 + 0.002
    multipliers = None
    if groups is not None:
        multipliers = torch.randint(1, 17, (rows, groups), generator=generator).to(torch.int8)
    return Integers.of(codes, scale, bits, multipliers)


def unsigned(codes: Codes | None, bits: int = 8) -> Tensor:
    """Codes as the modules have them."""
    assert codes is not None
    return (codes.values.to(torch.int16) + centre(asymmetric_grid(bits))).to(torch.uint8)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("multiplied", [True, False])
def test_static_codes_are_the_modules(bits: int, multiplied: bool) -> None:
    reads, quantizer = static(bits, multiplied=multiplied)
    x = values(TOKENS, WIDTH, spread=3.0)
    _, codes = apply(x, "none", reads)
    expected, scale, _ = quantizer(x)
    assert torch.equal(unsigned(codes, bits), expected)
    assert codes is not None
    assert codes.scale.item() == scale.item()


def test_halves_are_rounded_to_the_even_code() -> None:
    reads = Reads.static(torch.tensor(0.5), torch.tensor(128, dtype=torch.uint8), None, 8)
    x = torch.tensor([[0.25, 0.75, 1.25, -0.25, -0.75, 1e30, -1e30, 0.0]])
    _, codes = apply(x, "none", reads)
    assert codes is not None
    assert codes.values.tolist() == [[0, 2, 2, 0, -2, 127, -128, 0]]


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_tokens_are_the_modules(bits: int) -> None:
    x = values(TOKENS, WIDTH)
    x[3] = 0.0  # a token too small for a scale
    _, codes = apply(x, "none", Reads.token(None, bits, "cpu"))
    expected, scale, _ = TokenQuantizer(None, bits)(x)
    assert torch.equal(unsigned(codes, bits), expected)
    assert codes is not None
    assert torch.equal(codes.scale, scale.squeeze(-1))


def test_float8_codes_are_those_of_numerics() -> None:
    x = values(TOKENS, WIDTH)
    _, codes = apply(x, "none", Reads.float8("cpu"))
    expected, scale = quantize_float8(x)
    assert codes is not None
    assert torch.equal(codes.scale, scale.squeeze(-1))
    found, wanted = codes.values.float(), expected.float()
    # Triton 3.6's interpreter halves what is rounded up to a power of two; GPUs do not.
    whole = torch.frexp(wanted)[0].abs() == 0.5
    assert torch.equal(found[~whole], wanted[~whole])
    assert found.abs().max() == 448.0


@pytest.mark.parametrize("function", ["none", "gelu", "gelu_tanh", "relu"])
def test_activation_functions(function: str) -> None:
    x = values(TOKENS, WIDTH, spread=2.0)
    expected = {
        "none": x,
        "gelu": torch.nn.functional.gelu(x),
        "gelu_tanh": torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": x.relu(),
    }[function]
    reads, quantizer = static()
    result, codes = apply(x, function, reads)  # type: ignore[arg-type]
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=2e-6)
    apart = unsigned(codes).int() - quantizer(expected)[0].int()
    assert apart.abs().max() <= 1
    assert (apart != 0).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("kind", ["float", "static", "token"])
def test_layer_norm(dtype: torch.dtype, with_residual: bool, kind: str) -> None:
    x = values(TOKENS, WIDTH, seed=1).to(dtype)
    residual = values(TOKENS, WIDTH, seed=2).to(dtype) if with_residual else None
    weight, bias = values(WIDTH, seed=3) + 1.0, values(WIDTH, seed=4)
    reads, quantizer = static()
    reads = {"float": FLOATS, "static": reads, "token": Reads.token(None, 8, "cpu")}[kind]
    normed, codes = layer_norm(x, residual, weight, bias, 1e-12, reads, dtype)
    total = x.float() if residual is None else x.float() + residual.float()
    expected = torch.nn.functional.layer_norm(total, (WIDTH,), weight, bias, 1e-12)
    assert normed.dtype == dtype
    torch.testing.assert_close(
        normed, expected.to(dtype), atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 1e-3
    )
    if kind == "static":
        assert (unsigned(codes).int() - quantizer(expected)[0].int()).abs().max() <= 1
    elif kind == "token":
        assert codes is not None
        found = codes.values.float() * codes.scale[:, None]
        assert (found - expected).abs().max() <= codes.scale.max() / 2 + 1e-5


@pytest.mark.parametrize(("bits", "groups"), [(8, None), (4, None), (4, 3)])
@pytest.mark.parametrize("kind", ["static", "token"])
def test_products_are_the_modules_bit_for_bit(bits: int, groups: int | None, kind: str) -> None:
    matrix, bias = integers(bits, groups), values(OUTPUTS, seed=5)
    reads, quantizer = static(multiplied=False)
    module = QuantLinear(matrix, bias, quantizer if kind == "static" else TokenQuantizer(None))
    reads = reads if kind == "static" else Reads.token(None, 8, "cpu")
    x = values(TOKENS, WIDTH)
    _, codes = apply(x, "none", reads)
    assert codes is not None
    found = product(codes, Operand.of(Matrix.of(matrix), bias, reads), torch.float32)
    assert torch.equal(found, module(x))  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "groups"), [(8, None), (4, None), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weight_only_products(bits: int, groups: int | None, dtype: torch.dtype) -> None:
    matrix, bias = integers(bits, groups), values(OUTPUTS, seed=5)
    x = values(TOKENS, WIDTH).to(dtype)
    expected = QuantLinear(matrix, bias, None)(x.float())
    found = product(x, Operand.of(Matrix.of(matrix), bias, FLOATS), torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tiles are Triton's")
@pytest.mark.parametrize("tiles", HOPPER, ids=str)
def test_no_tile_changes_a_product(tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than the matrix, or not dividing it."""
    module = importlib.import_module("quantkit.kernels.product")
    monkeypatch.setattr(module, "tiles_for", lambda *_: tiles)
    reads, _ = static(multiplied=False)
    codes = reads.codes(values(150, 192, seed=3))
    for bits, groups in ((8, None), (4, 6)):
        weight = Operand.of(
            Matrix.of(integers(bits, groups, rows=200, width=192)), values(200, seed=2), reads
        )
        found = product(codes, weight, torch.float32)
        expected = product_reference(codes, weight, torch.float32)
        assert isinstance(found, Tensor)
        assert isinstance(expected, Tensor)
        assert torch.equal(found, expected)


def test_tiles_that_are_tried_fit_the_number_of_tokens() -> None:
    for tokens, least, most in ((1, 16, 32), (20, 16, 32), (1024, 16, 256), (16384, 64, 256)):
        found = {tiles.tokens for tiles in suitable(HOPPER, tokens)}
        assert (min(found), max(found)) == (least, most)
        assert suitable(SINGLE, tokens)


def test_a_product_may_end_in_the_next_products_codes() -> None:
    matrix, bias = integers(4, 3, rows=WIDTH), values(WIDTH, seed=5)
    reads, quantizer = static()
    inputs, _ = static(multiplied=False)
    _, codes = apply(values(TOKENS, WIDTH), "none", inputs)
    assert codes is not None
    weight = Operand.of(Matrix.of(matrix), bias, inputs)
    found = product(codes, weight, torch.float32, "gelu", reads)
    floats = product(codes, weight, torch.float32)
    assert isinstance(found, Codes)
    assert isinstance(floats, Tensor)
    apart = unsigned(found).int() - quantizer(torch.nn.functional.gelu(floats))[0].int()
    assert apart.abs().max() <= 1
    assert (apart != 0).float().mean() < 1e-3


def test_halves_of_blocks_by_hand() -> None:
    codes = torch.tensor([[1, 2, 3, 4, -1]], dtype=torch.int8)
    packed = pack_halves(codes, 2)
    assert packed.tolist() == [[0x31, 0x42, 0x0F, 0x00]]
    assert torch.equal(unpack_halves(packed, 2, 5), codes)


@pytest.mark.parametrize(("width", "groups"), [(96, 3), (192, 3), (70, None), (80, 5)])
def test_matrices_hold_the_same_integers(width: int, groups: int | None) -> None:
    given = integers(4, groups, width=width)
    matrix = Matrix.of(given)
    assert torch.equal(matrix.wide(), given.wide())
    assert matrix.half == (0 if groups == 5 else 32 if width == 96 else 64)  # 80 / 5 is below 32


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("frequent", [True, False])
def test_rows_of_tables_are_the_modules(bits: int, frequent: bool) -> None:
    table = integers(bits, 3 if bits == 4 else None, rows=30)
    rows = torch.tensor([2, 7, 20]) if frequent and bits == 4 else None
    codes = None if rows is None else integers(8, None, rows=3).codes
    ids = torch.tensor([0, 2, 29, 7, 7, 1, 20])
    expected = QuantEmbedding(table, rows, codes)(ids)
    made = Table.of(table, rows, codes)
    assert torch.equal(add_rows(made, ids, None), expected)
    before = values(7, WIDTH)
    assert torch.equal(add_rows(made, ids, before), before + expected)


def test_rows_of_float_tables() -> None:
    table, ids = values(30, WIDTH), torch.tensor([3, 0, 29])
    assert torch.equal(add_rows(Table(table, WIDTH), ids, None), table[ids])


@pytest.mark.parametrize(("heads", "width"), [(4, 12), (2, 64), (1, 32)])
def test_attention_of_packed_texts_is_that_of_each_text(heads: int, width: int) -> None:
    hidden, lengths = heads * width, [3, 70, 0, 1, 64]
    merged = values(sum(lengths), 3 * hidden)
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    found = attention(merged, starts, max(lengths), heads, FLOATS)
    parts = []
    for part in merged.split([length for length in lengths if length]):
        q, k, v = part.view(len(part), 3, heads, width).permute(1, 2, 0, 3)
        context = torch.softmax(q @ k.transpose(1, 2) / width**0.5, -1) @ v
        parts.append(context.transpose(0, 1).reshape(len(part), hidden))
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["static", "token"])
def test_attention_leaves_as_codes(kind: str) -> None:
    starts, heads = torch.tensor([0, 9, 21], dtype=torch.int32), 4
    merged = values(TOKENS, 3 * WIDTH)
    reads, quantizer = static()
    floats = attention(merged, starts, 12, heads, FLOATS)
    assert isinstance(floats, Tensor)
    found = attention(
        merged, starts, 12, heads, reads if kind == "static" else Reads.token(None, 8, "cpu")
    )
    assert isinstance(found, Codes)
    expected = (quantizer if kind == "static" else TokenQuantizer(None))(floats)[0]
    assert (unsigned(found).int() - expected.int()).abs().max() <= 1
