"""Post-training quantization: from a float model and calibration batches to integers."""

from quantkit.ptq.inputs import InputDecision
from quantkit.ptq.quantize import Quantized, check_finite, output_factors, quantize
from quantkit.ptq.resume import LayerStore
from quantkit.ptq.weights import Progress

__all__ = [
    "InputDecision",
    "LayerStore",
    "Progress",
    "Quantized",
    "check_finite",
    "output_factors",
    "quantize",
]
