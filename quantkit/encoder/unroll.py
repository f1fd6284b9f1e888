"""ALBERT calls one layer several times; here every call gets module names of its own."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from quantkit.errors import CheckpointError

__all__ = ["rolled_config", "unroll"]


def unroll(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, or for an ALBERT that shares layers a copy without shared modules.

    The copy has one module per call, and these hold the very same Parameters: no weight is
    copied, and transformers' own forward runs. Its configuration says as many groups as
    layers; `rolled_config` has the checkpoint's number.

    Raises:
        CheckpointError: an ALBERT whose groups hold several layers.
    """
    config: Any = model.config
    if config.model_type != "albert":
        return model
    if config.inner_group_num != 1:
        raise CheckpointError(
            f"The checkpoint's config.json says inner_group_num: {config.inner_group_num}; "
            f"quantkit knows ALBERT with one layer a group, as all published ones have."
        )
    calls, groups = config.num_hidden_layers, config.num_hidden_groups
    if groups == calls:
        return model
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    result = copy.deepcopy(model, dict[int, Any](tensors))
    result.config.num_hidden_groups = calls
    kept: dict[int, Any] = {**tensors, id(result.config): result.config}
    encoder: Any = result.base_model.encoder
    shared = list(encoder.albert_layer_groups)
    # transformers' own rule for the group of a call.
    owners = [shared[int(call / (calls / groups))] for call in range(calls)]
    encoder.albert_layer_groups = nn.ModuleList(
        copy.deepcopy(owner, dict(kept)) for owner in owners
    )
    return result


def rolled_config(model: PreTrainedModel) -> dict[str, Any]:
    """The configuration as the checkpoint's config.json has it, also for an unrolled model."""
    values: dict[str, Any] = model.config.to_dict()
    if model.config.model_type == "albert":
        encoder: Any = model.base_model.encoder
        layers = [group.albert_layers[0] for group in encoder.albert_layer_groups]
        norms = {id(layer.full_layer_layer_norm.weight) for layer in layers}
        values["num_hidden_groups"] = len(norms)
    return values
