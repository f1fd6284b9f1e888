"""The torch engine: a checkpoint on a GPU, by fused kernels and CUDA graphs.

It reads packed and float folders as they are, without ONNX Runtime, and needs only torch, Triton,
transformers, tokenizers and safetensors.
"""

from quantkit.engine.backend import TorchBackend, open_session
from quantkit.engine.products import Precision

__all__ = ["Precision", "TorchBackend", "open_session"]
