"""Quantization-aware training: further training that starts from PTQ's state and ends packed.

trained = prepare(model, quantized, Lsq())
optimizer = AdamW(parameter_groups(trained, lr=2e-5, weight_decay=0.01, scale_lr=1e-3))
...                       # any loop; set_progress(trained, step, steps) before each step
result = pack(trained, quantized)
"""

from quantkit.algorithms.trained_ranges import Ema, Fixed, Lsq, Ranges
from quantkit.qat.convert import pack, prepare
from quantkit.qat.health import dead_inputs, diagnose, parameter_groups, refuse_dead_inputs
from quantkit.qat.progress import set_progress

__all__ = [
    "Ema",
    "Fixed",
    "Lsq",
    "Ranges",
    "dead_inputs",
    "diagnose",
    "pack",
    "parameter_groups",
    "prepare",
    "refuse_dead_inputs",
    "set_progress",
]
