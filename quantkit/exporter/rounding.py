"""What float rounding alone does to a model's answers: the yardstick of the gate's test (c)."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan

__all__ = ["DISTURBANCE", "disturbed", "in_double"]

# Of a value, at every LayerNorm: a fifth of what test (b) allows, and about what sound files
# show there. Rounding flips are rare in small models; a disturbance as small as the file's own
# would by chance meet none where the file meets a few.
DISTURBANCE = 2e-6


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes in float64."""
    return copy.deepcopy(model).double()


@contextmanager
def disturbed(
    model: PreTrainedModel, plan: EncoderPlan, seed: int = 0, size: float = DISTURBANCE
) -> Iterator[None]:
    """While it is open, every LayerNorm's output is off by a seeded relative `size` at most."""
    generator = torch.Generator().manual_seed(seed)

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        noise = torch.rand(output.shape, generator=generator, dtype=output.dtype)
        return output * (1.0 + size * (2.0 * noise - 1.0))

    handles = [model.get_submodule(name).register_forward_hook(hook) for name in _norms(plan)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norms(plan: EncoderPlan) -> Sequence[str]:
    layers = (name for layer in plan.layers for name in (layer.attention_norm, layer.output_norm))
    return [plan.embedding.norm, *layers]
