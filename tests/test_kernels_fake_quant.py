"""The fused fake quantization against `numerics.learned_fake_quantize` and its gradients."""

import os

import pytest
import torch
from torch import Tensor

from quantkit import numerics
from quantkit.kernels.fake_quant import learned_fake_quantize
from quantkit.numerics import Grid, asymmetric_grid, symmetric_grid
from tests.interpreter import correct_bfloat16

Case = tuple[Tensor, Tensor, Tensor, Grid, Tensor | None]


def case(kind: str) -> Case:
    """x, scale, zero point, grid and multipliers of a tensor, of a weight's rows, of groups."""
    generator = torch.Generator().manual_seed(5)
    if kind == "tensor":
        x = torch.randn((3, 7, 40), generator=generator) * 2
        return x, torch.tensor(0.021), torch.tensor(70.4), asymmetric_grid(8), None
    x = torch.randn((6, 64), generator=generator)
    if kind == "rows":
        scale = torch.rand((6, 1), generator=generator) * 0.02 + 0.01
        return x, scale, torch.zeros(()), symmetric_grid(8), None
    scale = torch.rand((6, 1, 1), generator=generator) * 0.02 + 0.02
    multipliers = torch.randint(1, 17, (6, 2, 1), generator=generator).float()
    return x.view(6, 2, 32), scale, torch.zeros(()), symmetric_grid(4), multipliers


def gradients(function: object, given: Case, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    x, scale, zero, grid, multipliers = given
    leaves = [tensor.clone().requires_grad_() for tensor in (x, scale, zero)]
    result = function(*leaves, grid, multipliers)
    (result * weight).sum().backward()
    return result.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("kind", ["tensor", "rows", "groups"])
def test_values_and_gradients_are_those_of_numerics(kind: str) -> None:
    given = case(kind)
    weight = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(6))
    found, made = gradients(learned_fake_quantize, given, weight)
    wanted, expected = gradients(numerics.learned_fake_quantize, given, weight)
    assert torch.equal(found, wanted)
    assert len(made) == len(expected) == 3
    assert torch.equal(made[0], expected[0])
    for one, other in zip(made[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    clipped = made[0] == 0
    assert 0 < clipped.float().mean() < 1  # both branches of the gradient are there


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_smoothing_and_types_are_inside(given: torch.dtype, kind: torch.dtype) -> None:
    """One kernel for x m on the grid, read and written in the types of autocast."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        correct_bfloat16()
    x, scale, zero, grid, _ = case("tensor")
    smoothing = torch.rand(x.shape[-1], generator=torch.Generator().manual_seed(7)) + 0.5
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))

    def plain(x: Tensor, scale: Tensor, zero: Tensor, grid: Grid, _: object) -> Tensor:
        smoothed = x.float() * smoothing
        return numerics.learned_fake_quantize(smoothed, scale, zero, grid).to(kind)

    def fused(x: Tensor, scale: Tensor, zero: Tensor, grid: Grid, _: object) -> Tensor:
        return learned_fake_quantize(x, scale, zero, grid, smoothing=smoothing, kind=kind)

    case_of_type: Case = (x.to(given), scale, zero, grid, None)
    found, made = gradients(fused, case_of_type, weight)
    wanted, expected = gradients(plain, case_of_type, weight)
    assert found.dtype == kind
    assert made[0].dtype == given
    assert torch.equal(found, wanted)
    assert torch.equal(made[0], expected[0])
    for one, other in zip(made[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_gradients_by_hand() -> None:
    x = torch.tensor([[1.1, 9.0]], requires_grad=True)
    scale = torch.tensor([[0.5]], requires_grad=True)
    result = learned_fake_quantize(x, scale, torch.zeros(()), symmetric_grid(4))
    assert result.tolist() == [[1.0, 3.5]]
    result.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(scale.grad, torch.tensor([[2 - 2.2 + 7]]))


def test_several_zero_points_go_the_plain_way() -> None:
    x, zero = torch.randn(4, 8), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    given = (x, torch.full((4, 1), 0.1), zero, asymmetric_grid(8))
    assert torch.equal(learned_fake_quantize(*given), numerics.learned_fake_quantize(*given))
