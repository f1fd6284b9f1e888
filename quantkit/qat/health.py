"""What the optimizer is given, and what went wrong when a run diverges."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.errors import RecipeError
from quantkit.qat.modules import (
    FakeQuantEmbedding,
    FakeQuantInput,
    FakeQuantLinear,
    FakeQuantToken,
)

__all__ = ["dead_inputs", "diagnose", "parameter_groups", "refuse_dead_inputs"]


def parameter_groups(
    trained: nn.Module, *, lr: float, weight_decay: float, scale_lr: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices, then biases and norms, then scales and zero points.

    Only matrices decay. Scales and zero points have a learning rate of their own, and are a
    group only if there are any (with `Lsq`). `initial_lr` is what a resumed schedule scales.

    Args:
        trained: by `prepare`.
        lr: of weights, biases and norms.
        weight_decay: of matrices.
        scale_lr: of logarithms of scales, and of zero points in shares of their grid.
    """
    ranges = list(_ranges(trained))
    own = {id(parameter) for parameter in ranges}
    rest = [p for p in trained.parameters() if p.requires_grad and id(p) not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [{**group, "lr": lr, "initial_lr": lr} for group in groups]
    if ranges:
        learned = {"params": ranges, "weight_decay": 0.0, "lr": scale_lr, "initial_lr": scale_lr}
        groups.append(learned)
    return groups


def diagnose(trained: nn.Module) -> str:
    """One sentence on why a loss may have become NaN: the layer whose range exploded.

    Named is the first scale or parameter that is not finite, in the order of the modules;
    without any, the range that has moved farthest from where it started.
    """
    for name, scale, _ in _scales(trained):
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            return f"The range of {name} is no longer a positive number."
    for name, tensor in trained.named_parameters():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            return f"{name} holds {bad} values that are NaN or infinite, of {tensor.numel()}."
    farthest, moved = "", 1.0
    for name, scale, start in _scales(trained):
        ratio = scale / start
        factor = float(torch.maximum(ratio, 1.0 / ratio).max())
        if factor > moved:
            farthest, moved = name, factor
    if farthest:
        return (
            f"All parameters are finite; the range that moved farthest is that of {farthest}, "
            f"{moved:.3g} times from where it started."
        )
    return "All parameters are finite, and no range has moved."


def dead_inputs(trained: nn.Module) -> list[str]:
    """Names of quantized Linears whose input no forward pass has brought yet.

    Linears that read one tensor are named by the first of them.
    """
    return [
        name
        for name, module in trained.named_modules()
        if isinstance(module, FakeQuantLinear)
        and isinstance(reader := getattr(module, "input", None), FakeQuantInput | FakeQuantToken)
        and not reader.ran
    ]


def refuse_dead_inputs(trained: nn.Module) -> None:
    """Refuse to train ranges that no data reaches; call it after the first step.

    Raises:
        RecipeError: naming the first layer without data.
    """
    if dead := dead_inputs(trained):
        raise RecipeError(
            f"{dead[0]} has not seen any data after a training step"
            f"{f', nor have {len(dead) - 1} others' if len(dead) > 1 else ''}: its range cannot "
            f"be trained. Leave it in float: skip: [{dead[0]}]."
        )


def _ranges(trained: nn.Module) -> Iterator[Tensor]:
    """Every parameter of a range, once."""
    seen = set()
    for module in trained.modules():
        for name in ("log_scale", "offset"):
            parameter = module._parameters.get(name) if _is_fake(module) else None
            if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


@torch.no_grad()
def _scales(trained: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, scale now and scale at the start of every range."""
    for name, module in trained.named_modules():
        if isinstance(module, FakeQuantInput | FakeQuantLinear | FakeQuantEmbedding):
            yield name, module.scale, module.base_scale


def _is_fake(module: nn.Module) -> bool:
    return isinstance(module, FakeQuantInput | FakeQuantLinear | FakeQuantEmbedding)
