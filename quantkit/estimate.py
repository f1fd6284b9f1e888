"""How much memory fine-tuning will take, by the published formula, before it is begun.

    peak = m + f * batch * b + d * g + o * m

m: bytes of the parameters; f: bytes that the forward pass keeps for the backward pass at
batch size 1; b: 0.5 in mixed precision, else 1; g = m: the gradients; d: 1 on one device, 2 on
several (a bucket copy for the exchange); o: moments the optimizer keeps, 2 for AdamW.

The formula is that of the study of Indonesian election tweets (BERT and DistilBERT, V100). It
leaves out what a process holds anyway: imports, data, the allocator's slack.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.checkpoint import untrained
from quantkit.errors import RecipeError
from quantkit.recipe import Recipe
from quantkit.student import every_second_layer

__all__ = ["Estimate", "estimate", "estimate_recipe", "forward_bytes"]

MOMENTS = 2  # AdamW's


@dataclass(frozen=True)
class Estimate:
    """The parts of the formula, in bytes."""

    parameters: int  # their number
    model: int
    forward: int  # at batch size 1, in float32
    activations: int  # of the whole batch, in the precision of the run
    gradients: int
    moments: int

    @property
    def peak(self) -> int:
        """The sum."""
        return self.model + self.activations + self.gradients + self.moments

    def lines(self) -> list[str]:
        """The parts and their sum, for people."""
        parts = {
            "model": self.model,
            "activations of a batch": self.activations,
            "gradients": self.gradients,
            "optimizer's moments": self.moments,
            "peak by the formula": self.peak,
        }
        count = f"{'parameters':>32}  {self.parameters:,}"
        return [count, *(f"{name:>32}  {size / 1e6:10.1f} MB" for name, size in parts.items())]


def estimate_recipe(recipe: Recipe, devices: int) -> Estimate:
    """The formula for a recipe's model, read from its configuration alone.

    Raises:
        CheckpointError: the configuration cannot be read.
        RecipeError: a model that has none before its data is seen.
    """
    if recipe.model in ("builtin", "recurrent"):
        raise RecipeError(
            f"The model {recipe.model!r} is made from its data, and small. Estimate another one "
            f"with --model."
        )
    model = untrained(recipe.model)
    if recipe.student is not None:
        with torch.device("meta"):
            model = every_second_layer(model)
    length = min(recipe.max_length or 512, int(model.config.max_position_embeddings))
    rows = -(-recipe.finetune.batch_size // (devices * recipe.finetune.accumulation))
    mixed = recipe.finetune.precision != "fp32"
    return estimate(model, length=length, batch_size=rows, mixed=mixed, devices=devices)


def estimate(
    model: PreTrainedModel, *, length: int, batch_size: int, mixed: bool, devices: int = 1
) -> Estimate:
    """Apply the formula to a model, which may be on the `meta` device.

    Args:
        model: as it will be trained.
        length: tokens of each row.
        batch_size: rows at once on one device.
        mixed: bf16 or fp16 autocast.
        devices: data-parallel processes.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    forward = forward_bytes(model, length)
    return Estimate(
        parameters=count,
        model=size,
        forward=forward,
        activations=int(forward * batch_size * (0.5 if mixed else 1.0)),
        gradients=size * (1 if devices == 1 else 2),
        moments=size * MOMENTS,
    )


def forward_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes of the distinct tensors, parameters apart, that one row's forward pass keeps."""
    parameters = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in parameters:
            kept[_storage(tensor)] = tensor  # holding it, so that no other takes its place
        return tensor

    device = next(model.parameters()).device
    ids = torch.ones((1, length), dtype=torch.int64, device=device)
    was_training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=ids)  # without a mask, whose values the meta device lacks
    finally:
        model.train(was_training)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
