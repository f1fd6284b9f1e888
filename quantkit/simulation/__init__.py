"""Full quantization, simulated in torch: every tensor of the forward pass lies on a grid.

Published figures of naive 8-bit BERT (Bondarenko et al. 2021: 83.06 falls to 71.03 on GLUE)
quantize every activation, while integer kernels need the inputs of Linears only. Here such
settings can be repeated and compared; no file can be exported of them.
"""

from quantkit.simulation.build import Simulated, TensorRange, simulate
from quantkit.simulation.modules import FakeQuantizer

__all__ = ["FakeQuantizer", "Simulated", "TensorRange", "simulate"]
