"""Test (a) for what cannot be read while the file runs: the numbers it stores.

Every number has to be the model's own: weight codes, scales and bias, and the input's scale and
zero point. A product of dequantized numbers is not exact, so a wrong number could hide in it.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan
from quantkit.exporter.blocks import BlockErrors
from quantkit.exporter.form import integer_modules
from quantkit.exporter.initializers import (
    merged_bias,
    merged_block_scale,
    merged_narrow_codes,
    merged_scale,
)
from quantkit.exporter.names import product_name
from quantkit.exporter.portable import portable_zero_point
from quantkit.modules import InputQuantizer, QuantLinear

__all__ = ["check_stored"]

Operators = Mapping[str, onnx.NodeProto]


def check_stored(
    model: PreTrainedModel, plan: EncoderPlan, proto: onnx.ModelProto, errors: BlockErrors
) -> None:
    """Compare stored numbers with the model's and count them in `errors` as products."""
    operators = {output: node for node in proto.graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for shared in plan.inputs():
        modules = integer_modules(model, shared)
        if not modules:
            continue
        expected = _pairs(modules, operators[product_name(shared)], operators)
        for name, values in expected.items():
            # 4-bit values come as a type of their own.
            found = numpy_helper.to_array(stored[name]).astype(values.dtype)
            errors.products_of(found, values, np.zeros(1))


def _pairs(
    modules: list[QuantLinear], product: onnx.NodeProto, operators: Operators
) -> dict[str, np.ndarray]:
    """What a product of dequantized numbers is made of; nothing of any other product."""
    expected = {}
    if product.op_type == "Add" and (bias := merged_bias(modules)) is not None:
        expected[product.input[1]] = bias
        product = operators[product.input[0]]
    if product.op_type != "MatMul":
        return {}
    x, weight = (operators.get(name) for name in product.input)
    if weight is None or weight.op_type != "DequantizeLinear":
        return {}
    two_levels = modules[0].multipliers is not None
    expected[weight.input[0]] = merged_narrow_codes(modules)
    expected[weight.input[1]] = merged_block_scale(modules) if two_levels else merged_scale(modules)
    quantizer = modules[0].input_quantizer
    if isinstance(quantizer, InputQuantizer) and x is not None:
        for node in (x, operators[x.input[0]]):  # both of the pair have to say the same
            expected[node.input[1]] = quantizer.scale.numpy()
            expected[node.input[2]] = portable_zero_point(quantizer)
    return expected
