"""What a BERT-family encoder is made of: which Linear reads which tensor, and what it answers."""

from quantkit.encoder.activations import Activation, activation_of
from quantkit.encoder.answers import head_of
from quantkit.encoder.families import describe
from quantkit.encoder.plan import EmbeddingPlan, EncoderPlan, HeadPlan, LayerPlan, SharedInput
from quantkit.encoder.unroll import rolled_config, unroll

__all__ = [
    "Activation",
    "EmbeddingPlan",
    "EncoderPlan",
    "HeadPlan",
    "LayerPlan",
    "SharedInput",
    "activation_of",
    "describe",
    "head_of",
    "rolled_config",
    "unroll",
]
