"""How one exported file writes a model, as far as the parity gate has to know."""

from dataclasses import dataclass

import onnx
from torch import nn
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.exporter.names import attention_name, codes_name, product_name, token_scale_name
from quantkit.modules import QuantLinear, TokenQuantizer

__all__ = ["FileForm", "file_form", "integer_modules", "reads_codes"]


@dataclass(frozen=True)
class FileForm:
    """How one file writes the model.

    taps          the inner values that the tests read, with their element types
    dequantized   the codes that the file turns back into floats and multiplies as such, unless
                  a runtime recognises the pattern
    """

    taps: dict[str, int]
    dequantized: frozenset[str]


def file_form(plan: EncoderPlan, model: PreTrainedModel, proto: onnx.ModelProto) -> FileForm:
    """What the tests read of `proto`, and how it multiplies."""
    floats = [plan.embedding.norm]
    for layer in plan.layers:
        floats += [layer.attention_norm, layer.output_norm, attention_name(layer)]
    shared_inputs = list(plan.inputs())
    floats += [product_name(shared) for shared in shared_inputs]
    integers = [codes_name(shared) for shared in shared_inputs if reads_codes(model, shared)]
    dynamic = (shared for shared in shared_inputs if reads_codes(model, shared, TokenQuantizer))
    floats += [token_scale_name(shared) for shared in dynamic]
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    kinds = {node.output[0]: stored[node.input[2]] for node in quantizers}
    pairs = (node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear")
    return FileForm(
        dict.fromkeys(floats, onnx.TensorProto.FLOAT) | {name: kinds[name] for name in integers},
        frozenset(pairs) & frozenset(integers),
    )


def reads_codes(
    model: PreTrainedModel,
    shared: SharedInput,
    quantizer: type[nn.Module] = nn.Module,
) -> bool:
    """Whether the Linears of `shared` read codes, which a quantizer of that class makes."""
    module = model.get_submodule(shared.linears[0])
    return isinstance(module, QuantLinear) and isinstance(module.input_quantizer, quantizer)


def integer_modules(model: PreTrainedModel, shared: SharedInput) -> list[QuantLinear]:
    """The quantized Linears that read one tensor."""
    modules = (model.get_submodule(name) for name in shared.linears)
    return [module for module in modules if isinstance(module, QuantLinear)]
