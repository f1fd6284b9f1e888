"""Operators that ONNX Runtime's CUDA provider has kernels for, as far as encoders use them.

From the operator table of the project's documentation (docs/OperatorKernels.md, 1.24). What is
not in it runs on the host, and every tensor in between is copied: a dynamically quantized BERT
became 5 to 20 times slower than a float one that way (onnxruntime #10267, #24807).
"""

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import TensorProto

__all__ = ["host_operators"]

_STANDARD_NAMES = """
Abs Add And ArgMax ArgMin Cast Ceil Clip Compress Concat ConstantOfShape Conv Cos CumSum
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm Greater GreaterOrEqual Identity If InstanceNormalization LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul MatMulInteger Max Min
Mod Mul Neg NonZero Not OneHot Or Pad Pow QuantizeLinear RNN Range Reciprocal ReduceL1 ReduceL2
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Scan
ScatterElements ScatterND Shape Shrink Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor Constant
RMSNormalization RotaryEmbedding Attention Selu HardSigmoid HardSwish ThresholdedRelu IsNaN
IsInf GlobalAveragePool AveragePool MaxPool BatchNormalization
"""
_STANDARD = frozenset(_STANDARD_NAMES.split())
_CONTRIB_NAMES = """
Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu DecoderMaskedMultiHeadAttention
DequantizeLinear EmbedLayerNormalization FastGelu FusedMatMul GatedRelativePositionBias
GatherBlockQuantized Gelu GroupQueryAttention LongformerAttention MatMulBnb4 MatMulNBits
MultiHeadAttention PackedAttention PackedMultiHeadAttention QAttention QOrderedAttention
QOrderedGelu QOrderedLayerNormalization QOrderedMatMul QuantizeLinear QuantizeWithOrder
DequantizeWithOrder QuickGelu RelativePositionBias RemovePadding RestorePadding RotaryEmbedding
SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
"""
_CONTRIB = frozenset(_CONTRIB_NAMES.split())
# Integer products there take int8 on both sides.
_SIGNED_ONLY = frozenset({"MatMulInteger", "QAttention"})


def host_operators(model: onnx.ModelProto) -> Mapping[str, int]:
    """Operators, by type, that would run on the host in a session on the CUDA provider.

    What reads constants alone is computed once, when the file is opened, and does not count.
    """
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    constant = {"", *stored}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
            continue
        known = _STANDARD if node.domain in {"", "ai.onnx"} else _CONTRIB
        zero_points = (stored.get(name) for name in node.input[2:])
        unsigned = node.op_type in _SIGNED_ONLY and TensorProto.UINT8 in zero_points
        if node.op_type not in known or unsigned:
            found[f"{node.op_type} of uint8" if unsigned else node.op_type] += 1
    return found
