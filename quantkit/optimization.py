"""What the optimizer works with: its groups of parameters, the learning rate, dropout."""

from typing import Any

from torch import nn

from quantkit.recipe import Training

__all__ = ["lr_factor", "parameter_groups", "set_dropout"]

# Where the families' configurations name a share of dropout.
_DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",  # ALBERT
    "dropout",  # DistilBERT, as the next two
    "attention_dropout",
    "seq_classif_dropout",
)


def set_dropout(model: nn.Module, share: float) -> None:
    """Give all dropout layers, and the fields of the configuration that name one, `share`.

    The attention of transformers 5 reads the share from a dropout layer's `p`, that of
    transformers 4 from a number `dropout_prob` of its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        if hasattr(module, "dropout_prob"):
            vars(module)["dropout_prob"] = share
    config = getattr(model, "config", None)
    for name in _DROPOUT_FIELDS:
        if hasattr(config, name):
            setattr(config, name, share)


def parameter_groups(model: nn.Module, settings: Training) -> list[dict[str, Any]]:
    """AdamW's two groups: matrices with weight decay; biases and norm weights without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": settings.weight_decay, "lr": settings.lr},
        {"params": vectors, "weight_decay": 0.0, "lr": settings.lr},
    ]


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` share of the steps, is 1 at the step after them
    and falls linearly to 0 behind the last step. No step is made with 0.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / (steps - rising)
