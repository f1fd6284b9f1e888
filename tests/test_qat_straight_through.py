"""Products made chunk by chunk are those of the definition, gradients too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quantkit.numerics import Grid, asymmetric_grid, symmetric_grid
from quantkit.qat import chunks, inputs, products
from quantkit.qat.inputs import InputGrid, Read, fake_input
from quantkit.qat.products import fake_linear, fake_weight

ROWS, COLUMNS, TOKENS = 48, 32, 30


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 5 * COLUMNS)  # the last chunk is a rest


def _both(
    compute: Callable[[], Tensor], leaves: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> list[list[Tensor]]:
    """Result and gradients, by chunks and by the definition."""
    found = []
    for chunked in (True, False):
        with monkeypatch.context() as patched:
            for module in (inputs, products):
                patched.setattr(module, "in_chunks", lambda _, value=chunked: value)
            result = compute()
            upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
            gradients = torch.autograd.grad(result, leaves, upstream)
        found.append([result.detach(), *gradients])
    return found


def _close(found: list[list[Tensor]]) -> None:
    ours_by_chunks, definition = found
    for ours, theirs in zip(ours_by_chunks, definition, strict=True):
        tolerance = 2e-6 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("smoothed", [True, False])
def test_inputs(bits: int, smoothed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    grid = asymmetric_grid(bits)
    x = torch.randn(2, TOKENS, COLUMNS, requires_grad=True)
    scale = torch.tensor(3.0 / grid.qmax, requires_grad=True)  # a third of the values is clipped
    zero = torch.tensor(0.4 * grid.qmax, requires_grad=True)
    multiplier = torch.rand(COLUMNS) + 0.5 if smoothed else None
    found = _both(
        lambda: fake_input(x, InputGrid(scale, zero, grid, multiplier)),
        [x, scale, zero],
        monkeypatch,
    )
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert 0 < int((found[0][1] == 0).sum()) < x.numel() / 2
    _close(found)


def _weight(bits: int, levels: int) -> tuple[Tensor, Tensor, Tensor | None, Grid]:
    torch.manual_seed(0)
    grid = symmetric_grid(bits)
    multipliers = torch.randint(1, 19, (ROWS, 4), dtype=torch.int8) if levels == 2 else None
    weight = torch.randn(ROWS, COLUMNS)
    scale = torch.rand(ROWS, 1) / grid.qmax + 0.1 / grid.qmax
    if multipliers is not None:
        scale = scale / 9
    return weight.requires_grad_(), scale.requires_grad_(), multipliers, grid


@pytest.mark.parametrize(("bits", "levels"), [(8, 1), (4, 1), (4, 2)])
def test_linears(bits: int, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, multipliers, grid = _weight(bits, levels)
    x = torch.randn(2, TOKENS, COLUMNS, requires_grad=True)
    bias = torch.randn(ROWS, requires_grad=True)
    found = _both(
        lambda: fake_linear(Read(x), weight, scale, multipliers, grid, bias),
        [x, weight, scale, bias],
        monkeypatch,
    )
    assert torch.equal(found[0][2] == 0, found[1][2] == 0)
    assert 0 < int((found[0][2] == 0).sum()) < weight.numel()
    _close(found)


def test_a_fixed_scale_masks_the_weight_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, multipliers, grid = _weight(4, 2)
    x = torch.randn(TOKENS, COLUMNS)
    fixed = scale.detach()
    found = _both(
        lambda: fake_linear(Read(x), weight, fixed, multipliers, grid, None), [weight], monkeypatch
    )
    assert int((found[0][1] == 0).sum())
    _close(found)


@pytest.mark.parametrize("levels", [1, 2])
def test_under_autocast_the_grid_is_float32_and_the_product_is_not(levels: int) -> None:
    weight, scale, multipliers, grid = _weight(4, levels)
    x = torch.randn(TOKENS, COLUMNS, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = fake_linear(Read(x), weight, scale, multipliers, grid, None)
    expected = x.bfloat16() @ fake_weight(weight, scale, multipliers, grid).bfloat16().T
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for leaf in torch.autograd.grad(found.float().square().sum(), [x, weight, scale]):
        assert leaf.dtype == torch.float32
        assert bool(leaf.isfinite().all())


def test_under_autocast_a_product_is_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """By chunks, and by one kernel each that reads and writes autocast's type."""
    weight, scale, multipliers, grid = _weight(4, 2)
    x = torch.randn(TOKENS, COLUMNS, requires_grad=True)
    at = InputGrid(
        torch.tensor(0.02), torch.tensor(128.0), asymmetric_grid(8), torch.rand(COLUMNS) + 0.5
    )

    def product() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fake_linear(
                Read(fake_input(x, at), x, at), weight, scale, multipliers, grid, None
            )

    ours, definition = _both(product, [x, weight, scale], monkeypatch)
    assert ours[0].dtype == definition[0].dtype == torch.bfloat16
    assert torch.equal(ours[0], definition[0])
    for one, other in zip(ours[1:], definition[1:], strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_only_what_was_read_is_kept_of_an_input(kind: torch.dtype) -> None:
    weight, scale, multipliers, grid = _weight(4, 2)
    x = torch.randn(TOKENS, COLUMNS, dtype=kind, requires_grad=True)
    unsigned = asymmetric_grid(8)
    at = InputGrid(torch.tensor(0.02), torch.tensor(128.0), unsigned, torch.rand(COLUMNS) + 0.5)
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape == x.shape:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        read = Read(fake_input(x, at), x, at)
        products = [fake_linear(read, weight, scale, multipliers, grid, None) for _ in range(3)]
    assert kept == {x.untyped_storage().data_ptr()}
    found = torch.autograd.grad(torch.stack(products).sum(), [x, weight])
    plain = fake_linear(Read(fake_input(x, at)), weight, scale, multipliers, grid, None)
    expected = torch.autograd.grad(3 * plain.sum(), [x, weight])
    rtol = 1e-4 if kind == torch.float32 else 1e-2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-4)
