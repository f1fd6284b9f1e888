import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear

from quantkit.algorithms.bias_correction import corrected_bias
from quantkit.numerics import asymmetric_grid, fake_quantize, scale_and_zero_point, symmetric_grid


def test_by_hand() -> None:
    # W E[x] = 2 * 1 + 1 * 3 = 5, Ŵ E[x̂] = 2 * 2 + 0 * 3 = 4.
    weight, dequantized = torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    means = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    assert corrected_bias(torch.tensor([1.0]), weight, dequantized, *means).tolist() == [2.0]
    assert corrected_bias(None, weight, dequantized, *means).tolist() == [1.0]


@given(st.integers(1, 20), st.integers(1, 8), st.booleans(), st.integers(0, 999))
def test_the_mean_output_is_the_float_layers(
    columns: int, out: int, with_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, columns, generator=generator, dtype=torch.float64) + 2.0
    weight = torch.randn(out, columns, generator=generator, dtype=torch.float64)
    bias = torch.randn(out, generator=generator, dtype=torch.float64) if with_bias else None
    bound, grid = weight.abs().amax(1, keepdim=True), symmetric_grid(4)
    coarse = fake_quantize(weight, *scale_and_zero_point(-bound, bound, grid), grid)
    seen = fake_quantize(
        x, *scale_and_zero_point(x.min(), x.max(), asymmetric_grid(4)), asymmetric_grid(4)
    )
    corrected = corrected_bias(bias, weight, coarse, x.mean(0), seen.mean(0))
    expected = linear(x, weight, bias).mean(0)
    torch.testing.assert_close(linear(seen, coarse, corrected).mean(0), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0])])
def test_without_quantization_the_bias_stays(bias: torch.Tensor | None) -> None:
    weight = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    mean = torch.arange(5.0)
    corrected = corrected_bias(bias, weight, weight, mean, mean)
    assert corrected.tolist() == ([0.0, 0.0] if bias is None else bias.tolist())
    assert corrected.dtype == torch.float32
