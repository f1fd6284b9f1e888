"""Tests (a) and (b) of the parity gate: each piece of the file against the model's own.

Every piece is fed the file's own values, so an error cannot hide behind an earlier one and
a rounding flip cannot spread.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, LayerPlan, SharedInput
from quantkit.exporter.constants import constant_value
from quantkit.exporter.cpu import is_fused
from quantkit.exporter.initializers import merged_bias, merged_codes, merged_scale
from quantkit.exporter.names import attention_name, codes_name, product_name, token_scale_name
from quantkit.modules import InputQuantizer, QuantLinear, TokenQuantizer

__all__ = ["BlockErrors", "block_taps", "check_blocks", "check_stored"]

_FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


@dataclass
class BlockErrors:
    """The worst errors so far."""

    products: int = 0
    inexact_products: int = 0
    relative_error: float = 0.0
    code_distance: int = 0
    code_share: float = 0.0

    def floats(self, found: np.ndarray, expected: Tensor, explained: float = 0.0) -> None:
        """Compare a float value: largest difference over largest magnitude.

        `explained` is a difference that any computation in float32 may have here.
        """
        reference = expected.detach().numpy()
        scale = float(np.abs(reference).max()) or 1.0
        error = (float(np.abs(found - reference).max()) - explained) / scale
        # NaN compares false with everything: count it as infinitely wrong.
        self.relative_error = max(self.relative_error, error if error == error else np.inf)  # noqa: PLR0124

    def codes(self, found: np.ndarray, expected: Tensor) -> None:
        """Compare codes: how far, and in what share of places, one place set aside."""
        distance = np.abs(found.astype(np.int32) - expected.numpy().astype(np.int32))
        self.code_distance = max(self.code_distance, int(distance.max()))
        # One flip in the few hundred codes of a short text would be more than 0.1 %.
        others = max(0, int((distance > 0).sum()) - 1)
        self.code_share = max(self.code_share, others / distance.size)


def block_taps(plan: EncoderPlan, model: PreTrainedModel) -> dict[str, int]:
    """The inner values that the tests read, with their element types."""
    floats = [plan.embedding.norm]
    for layer in plan.layers:
        floats += [layer.attention_norm, layer.output_norm, attention_name(layer)]
    shared_inputs = list(plan.inputs())
    inside = [
        layer.query_key_value for layer in plan.layers if is_fused(model, layer.query_key_value)
    ]
    floats += [product_name(shared) for shared in shared_inputs if shared not in inside]
    integers = [codes_name(shared) for shared in shared_inputs if _reads_codes(model, shared)]
    dynamic = (shared for shared in shared_inputs if _reads_codes(model, shared, TokenQuantizer))
    floats += [token_scale_name(shared) for shared in dynamic]
    return {
        **dict.fromkeys(floats, onnx.TensorProto.FLOAT),
        **dict.fromkeys(integers, onnx.TensorProto.UINT8),
    }


@torch.inference_mode()
def check_blocks(
    model: PreTrainedModel,
    plan: EncoderPlan,
    arrays: dict[str, np.ndarray],
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> None:
    """Hold every tapped value of one batch against what the model makes of its inputs."""
    hidden = values[plan.embedding.norm]
    errors.floats(hidden, _embedded(model, plan, arrays))
    if (projection := plan.embedding.projection) is not None:
        _check_linear(model, projection, torch.from_numpy(hidden), values, errors)
        hidden = values[product_name(projection)]
    mask = torch.from_numpy(arrays["attention_mask"]).bool()
    for layer in plan.layers:
        hidden = _check_layer(model, plan, layer, hidden, mask, values, errors)
    _check_head(model, plan, torch.from_numpy(hidden), values, errors)


def _check_head(
    model: PreTrainedModel,
    plan: EncoderPlan,
    hidden: Tensor,
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> None:
    """What stands on the last layer, and the file's output."""
    head = plan.head
    if head.kind == "sequence":
        hidden = hidden[:, :1]  # one token, three axes, as in the graph
    if head.dense is not None and head.function is not None:
        _check_linear(model, head.dense, hidden, values, errors)
        product = torch.from_numpy(values[product_name(head.dense)])
        hidden = _FUNCTIONS[head.function](product)
    if head.classifier is not None:
        _check_linear(model, head.classifier, hidden, values, errors)
        hidden = torch.from_numpy(values[product_name(head.classifier)])
    errors.floats(values[plan.output], hidden[:, 0] if head.kind == "sequence" else hidden)


def _check_layer(
    model: PreTrainedModel,
    plan: EncoderPlan,
    layer: LayerPlan,
    hidden: np.ndarray,
    mask: Tensor,
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> np.ndarray:
    """One layer, from its input to its output, both the file's own."""

    def product(shared: SharedInput, x: Tensor) -> Tensor:
        _check_linear(model, shared, x, values, errors)
        return torch.from_numpy(values[product_name(shared)])

    def norm(name: str, x: Tensor, residual: np.ndarray) -> np.ndarray:
        errors.floats(values[name], model.get_submodule(name)(x + torch.from_numpy(residual)))
        return values[name]

    if is_fused(model, layer.query_key_value):
        merged = _check_fused(model, layer, torch.from_numpy(hidden), values, errors)
    else:
        merged = product(layer.query_key_value, torch.from_numpy(hidden))
    # Wide scores make softmax ill-conditioned: at |score| 400, float32 is off by 1e-5 in torch.
    exact = _attention(merged.double(), mask, plan.heads)
    own = float((_attention(merged, mask, plan.heads) - exact).abs().max())
    errors.floats(values[attention_name(layer)], exact, explained=own)
    context = torch.from_numpy(values[attention_name(layer)])
    middle = norm(layer.attention_norm, product(layer.attention_output, context), hidden)
    inner = product(layer.intermediate, torch.from_numpy(middle))
    active = model.get_submodule(layer.activation)(inner)
    return norm(layer.output_norm, product(layer.output, active), middle)


def _check_linear(
    model: PreTrainedModel,
    shared: SharedInput,
    x: Tensor,
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> None:
    """The codes of `x`, then test (a) on the product of the file's own codes."""
    found = values[product_name(shared)]
    if not _reads_codes(model, shared):
        outputs = [model.get_submodule(name)(x) for name in shared.linears]
        errors.floats(found, torch.cat(outputs, dim=-1))
        return
    expected = _exact_products(model, shared, x, values, errors)
    errors.products += found.size
    errors.inexact_products += int((found != expected).sum())


def check_stored(
    model: PreTrainedModel, plan: EncoderPlan, proto: onnx.ModelProto, errors: BlockErrors
) -> None:
    """Test (a) for products that stay inside an attention operator, and cannot be read.

    What the file stores for them has to be the model's own: weight codes, scales and bias,
    and the input's scale and zero point, every number of them.
    """
    operators = {node.output[0]: node for node in proto.graph.node}
    for layer in plan.layers:
        if not is_fused(model, layer.query_key_value):
            continue
        modules = _integer_modules(model, layer.query_key_value)
        quantizer = modules[0].input_quantizer
        if not isinstance(quantizer, InputQuantizer):
            raise TypeError(f"{attention_name(layer)} reads floats")
        expected = {  # by QAttention's input
            1: merged_codes(modules),
            2: merged_bias(modules),
            3: quantizer.scale.numpy(),
            4: merged_scale(modules),
            6: quantizer.zero_point.numpy(),
        }
        # What the operator reads: layers may share their initializers.
        reads = operators[attention_name(layer)].input
        for place, values in expected.items():
            found = constant_value(proto, reads[place])
            errors.products += found.size
            errors.inexact_products += int((found != values).sum())


def _check_fused(
    model: PreTrainedModel,
    layer: LayerPlan,
    x: Tensor,
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> Tensor:
    """The codes of `x`; returns the exact merged product of the file's own codes."""
    return torch.from_numpy(_exact_products(model, layer.query_key_value, x, values, errors))


def _exact_products(
    model: PreTrainedModel,
    shared: SharedInput,
    x: Tensor,
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> np.ndarray:
    """Holds the codes of `x` against the file's; returns the merged products of the file's."""
    modules = _integer_modules(model, shared)
    codes, quantizer = values[codes_name(shared)], modules[0].input_quantizer
    if quantizer is None:
        raise TypeError(f"{shared.linears[0]} reads floats")
    expected, scales, zero_point = quantizer(x)
    errors.codes(codes, expected)
    scale = scales.numpy()
    if isinstance(quantizer, TokenQuantizer):
        scale = values[token_scale_name(shared)]
        errors.floats(scale, scales)
    centred = codes.astype(np.float64) - float(zero_point)
    products = [_exact_product(centred, scale, module) for module in modules]
    return np.concatenate(products, axis=-1)


def _integer_modules(model: PreTrainedModel, shared: SharedInput) -> list[QuantLinear]:
    modules = (model.get_submodule(name) for name in shared.linears)
    return [module for module in modules if isinstance(module, QuantLinear)]


def _exact_product(centred: np.ndarray, scale: np.ndarray, module: QuantLinear) -> np.ndarray:
    """Test (a)'s reference, in NumPy: the accumulator is exact in float64, below 2**53."""
    accumulator = centred @ module.integers.wide().numpy().astype(np.float64).T
    factor = scale * module.scale.numpy()[:, 0]
    result: np.ndarray = accumulator.astype(np.float32) * factor
    return result if module.bias is None else result + module.bias.numpy()


def _attention(merged: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Softmax attention over merged query, key and value [batch, length, 3 hidden]."""
    batch, length, width = merged.shape
    parts = merged.view(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    context = torch.nn.functional.scaled_dot_product_attention(
        parts[0], parts[1], parts[2], attn_mask=mask[:, None, None, :]
    )
    return context.transpose(1, 2).reshape(batch, length, width // 3)


def _embedded(model: PreTrainedModel, plan: EncoderPlan, arrays: dict[str, np.ndarray]) -> Tensor:
    """The embedding block of the model itself, before a projection."""
    module = model.get_submodule(plan.embedding.norm.rpartition(".")[0])
    names = [name for name in plan.arguments if name != "attention_mask"]
    result: Tensor = module(**{name: torch.from_numpy(arrays[name]) for name in names})
    return result


def _reads_codes(
    model: PreTrainedModel,
    shared: SharedInput,
    quantizer: type[nn.Module] = nn.Module,
) -> bool:
    module = model.get_submodule(shared.linears[0])
    return isinstance(module, QuantLinear) and isinstance(module.input_quantizer, quantizer)
