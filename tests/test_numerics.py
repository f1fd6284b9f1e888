import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from quantkit.numerics import (
    Grid,
    asymmetric_grid,
    dequantize,
    fake_quantize,
    integer_linear,
    quantize,
    scale_and_zero_point,
    symmetric_grid,
)
from tests.reference.integers import integer_matmul, quantize_linear

VALUES = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)
GRIDS = st.sampled_from([symmetric_grid(8), asymmetric_grid(8), symmetric_grid(4)])


def test_grids_by_hand() -> None:
    assert (symmetric_grid(8).qmin, symmetric_grid(8).qmax) == (-127, 127)
    assert (symmetric_grid(4).qmin, symmetric_grid(4).qmax) == (-7, 7)
    assert (asymmetric_grid(8).qmin, asymmetric_grid(8).qmax) == (0, 255)


def test_the_docstrings_numbers() -> None:
    scale, zero_point = scale_and_zero_point(
        torch.tensor(-1.0), torch.tensor(3.0), asymmetric_grid(8)
    )
    assert float(scale) == pytest.approx(4 / 255)
    assert int(zero_point) == 64
    codes = quantize(
        torch.tensor([0.25, 0.75, 1.25]), torch.tensor(0.5), torch.tensor(0), symmetric_grid(8)
    )
    assert codes.tolist() == [0, 2, 2]


@given(VALUES, GRIDS)
def test_quantize_equals_the_numpy_reference(values: np.ndarray, grid: Grid) -> None:
    x = torch.from_numpy(values)
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), grid)
    expected = quantize_linear(
        values, scale.numpy(), zero_point.numpy().astype(np.float32), grid.qmin, grid.qmax
    )
    np.testing.assert_array_equal(quantize(x, scale, zero_point, grid).numpy(), expected)


@given(VALUES, GRIDS)
def test_the_range_covers_every_value_to_half_a_step(values: np.ndarray, grid: Grid) -> None:
    x = torch.from_numpy(values)
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), grid)
    error = (fake_quantize(x, scale, zero_point, grid) - x).abs().max()
    # Half a step for rounding; as much again at the ends, where the zero point was rounded.
    assert float(error) <= float(scale) * 1.001 * (0.5 if grid.symmetric else 1.0)


@given(VALUES, GRIDS)
def test_zero_is_exact(values: np.ndarray, grid: Grid) -> None:
    x = torch.from_numpy(values)
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), grid)
    assert float(fake_quantize(torch.zeros(1), scale, zero_point, grid)) == 0.0


@given(VALUES, GRIDS)
def test_values_on_the_grid_stay(values: np.ndarray, grid: Grid) -> None:
    x = torch.from_numpy(values)
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), grid)
    codes = quantize(x, scale, zero_point, grid)
    again = quantize(dequantize(codes, scale, zero_point), scale, zero_point, grid)
    assert torch.equal(codes, again)


@pytest.mark.parametrize("grid", [symmetric_grid(8), asymmetric_grid(8)])
def test_a_constant_zero_tensor_gets_scale_one(grid: Grid) -> None:
    scale, zero_point = scale_and_zero_point(torch.tensor(0.0), torch.tensor(0.0), grid)
    assert (float(scale), int(zero_point)) == (1.0, 0)


def _onnx_quantize_linear(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["codes"])
    graph = helper.make_graph(
        [node],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, [None])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
            helper.make_tensor("zero_point", TensorProto.UINT8, [], [zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    codes: np.ndarray = session.run(None, {"x": x})[0]
    return codes


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
def test_quantize_equals_onnxruntime_at_rounding_boundaries(zero_point: int) -> None:
    scale = np.float32(0.0371)
    steps = np.arange(-600, 600, dtype=np.float32) / 2
    x = np.concatenate([np.nextafter(steps * scale, np.float32(s)) for s in (-1e9, 1e9)])
    x = np.concatenate([x, steps * scale]).astype(np.float32)
    ours = quantize(
        torch.from_numpy(x), torch.tensor(scale), torch.tensor(zero_point), asymmetric_grid(8)
    )
    np.testing.assert_array_equal(ours.numpy(), _onnx_quantize_linear(x, float(scale), zero_point))


def test_fake_quantize_is_quantize_then_dequantize() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    scale, zero_point = torch.tensor(0.0173), torch.tensor(120, dtype=torch.uint8)
    grid = asymmetric_grid(8)
    expected = dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
    assert torch.equal(fake_quantize(x, scale, zero_point, grid), expected)


def test_the_straight_through_gradient_stops_at_the_clip() -> None:
    x = torch.tensor([-2.0, -0.4, 0.0, 0.3, 5.0], requires_grad=True)
    y = fake_quantize(x, torch.tensor(0.1), torch.tensor(0), symmetric_grid(4))
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(1, 9), st.integers(0, 255), st.integers(0, 2**31))
def test_integer_linear_equals_the_integer_reference(
    width: int, out: int, zero_point: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, (3, width)).astype(np.uint8)
    weight = generator.integers(-127, 128, (out, width)).astype(np.int8)
    weight_scale = generator.uniform(1e-4, 1e-1, out).astype(np.float32)
    bias = generator.normal(size=out).astype(np.float32)
    scale = np.float32(0.0123)
    ours = integer_linear(
        torch.from_numpy(codes),
        torch.tensor(scale),
        torch.tensor(zero_point, dtype=torch.uint8),
        torch.from_numpy(weight),
        torch.from_numpy(weight_scale)[:, None],
        torch.from_numpy(bias),
    )
    expected = integer_matmul(codes, float(scale), zero_point, weight, weight_scale, bias)
    np.testing.assert_array_equal(ours.numpy(), expected)


def test_float32_holds_518_full_products_exactly() -> None:
    full = 255 * 127
    assert 518 * full < 2**24 < 519 * full
