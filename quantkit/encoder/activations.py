"""Activation functions of the layers, by the classes that transformers makes of `hidden_act`."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

__all__ = ["Activation", "activation_of"]

Activation = Literal["gelu", "gelu_tanh", "relu"]

_CLASSES: Mapping[str, Activation] = {
    "GELUActivation": "gelu",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "ReLU": "relu",
}


def activation_of(module: nn.Module) -> Activation | None:
    """The formula that a module computes, GELU exact or by tanh; None of another one."""
    return _CLASSES.get(type(module).__name__)
