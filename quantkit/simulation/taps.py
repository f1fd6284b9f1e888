"""Where the tensors of a forward pass can be watched and put on a grid.

A tap is an `nn.Identity` that one tensor flows through, put beside the module that makes or reads
the tensor:

    Linear     [multiplier] -> [read] -> Linear -> made
    LayerNorm  read (the residual sum) -> LayerNorm -> made
    attention  scores, probabilities (see `modules.attention_on_grids`)

What only one Linear reads (attention's context, GELU's output, the head's vector) is tapped where
it is read: with smoothing that is behind the multiplier, so that it is quantized once. What
Linears and the residual both read is tapped where it is made.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from quantkit.encoder import EncoderPlan, LayerPlan, SharedInput
from quantkit.modules import QuantLinear
from quantkit.placement import swap
from quantkit.simulation.modules import QUANTIZERS, ChannelMultiplier

__all__ = ["Tap", "norms_of", "place_taps"]


@dataclass(frozen=True)
class Tap:
    """A tensor of the forward pass.

    name       of the module that it flows through
    residual   whether it is a residual sum, a term of one, or a LayerNorm's output: these have
               groups of channels where a recipe asks for groups
    softmax    whether its values are probabilities, which have no sign
    """

    name: str
    residual: bool = False
    softmax: bool = False


def norms_of(encoder: EncoderPlan) -> list[str]:
    """Names of all LayerNorms, in the order of computation."""
    layers = [(layer.attention_norm, layer.output_norm) for layer in encoder.layers]
    return [encoder.embedding.norm, *(name for names in layers for name in names)]


def place_taps(model: nn.Module, encoder: EncoderPlan) -> list[Tap]:
    """Put taps around the modules of a quantized model, in place; in the order of computation.

    Its QuantLinears become weight-only ones: what they read is on a grid already.
    """
    embedding, head = encoder.embedding, encoder.head
    taps = _norm(model, embedding.norm)
    if embedding.projection is not None:
        taps += _linears(model, embedding.projection, residual=True)
    for layer in encoder.layers:
        taps += _layer(model, layer)
    if head.dense is not None:
        taps += _linears(model, head.dense)
    if head.classifier is not None:
        taps += _linears(model, head.classifier, private=head.dense is not None)
    return taps


def _layer(model: nn.Module, layer: LayerPlan) -> list[Tap]:
    attention = layer.query_key_value.linears[0].rpartition(".")[0]
    return [
        *_linears(model, layer.query_key_value),
        *_attention(model, attention),
        *_linears(model, layer.attention_output, private=True, residual=True),
        *_norm(model, layer.attention_norm),
        *_linears(model, layer.intermediate),
        *_linears(model, layer.output, private=True, residual=True),
        *_norm(model, layer.output_norm),
    ]


def _linears(
    model: nn.Module, shared: SharedInput, *, private: bool = False, residual: bool = False
) -> list[Tap]:
    """Taps of the Linears that read one tensor.

    `private` says that nothing else reads it, `residual` that the outputs are added to it.
    """
    taps = []
    for name in shared.linears:
        module, smoothing = _weight_only(model.get_submodule(name))
        parts = OrderedDict[str, nn.Module]()
        if smoothing is not None:
            parts["multiplier"] = smoothing
        if private or smoothing is not None:
            parts["read"] = nn.Identity()
            taps.append(Tap(f"{name}.read"))
        swap(model, {name: nn.Sequential(parts | {"module": module, "made": nn.Identity()})})
        taps.append(Tap(f"{name}.made", residual=residual))
    return taps


def _weight_only(module: nn.Module) -> tuple[nn.Module, ChannelMultiplier | None]:
    """A Linear that reads floats, and the smoothing that has to come before it."""
    if not isinstance(module, QuantLinear):
        return module, None  # left in float by the recipe
    quantizer = module.input_quantizer
    multiplier = None if quantizer is None else quantizer.multiplier
    smoothing = None if multiplier is None else ChannelMultiplier(multiplier)
    return QuantLinear(module.integers, module.bias, None), smoothing


def _norm(model: nn.Module, name: str) -> list[Tap]:
    parts = OrderedDict(read=nn.Identity(), module=model.get_submodule(name), made=nn.Identity())
    swap(model, {name: nn.Sequential(parts)})
    return [Tap(f"{name}.read", residual=True), Tap(f"{name}.made", residual=True)]


def _attention(model: nn.Module, name: str) -> list[Tap]:
    inside = f"{name}.{QUANTIZERS}"
    taps = [Tap(f"{inside}.scores"), Tap(f"{inside}.probabilities", softmax=True)]
    parts = nn.ModuleDict({"scores": nn.Identity(), "probabilities": nn.Identity()})
    swap(model, {inside: parts})
    return taps
