"""A smaller student from a pretrained encoder: the start of a DistilBERT-style baseline.

Sanh et al. 2019, section 3: the student takes one layer out of two from its teacher. Where no
distilled model is to be had, fine-tuning this one is a fair stand-in, but it has seen no
distillation during pretraining, and every report says so.
"""

import copy
import re
from typing import Any

from transformers import PreTrainedModel

from quantkit.errors import CheckpointError

__all__ = ["every_second_layer"]

_LAYER = re.compile(r"(?P<before>.*\.layer\.)(?P<index>\d+)(?P<after>\..*)")


def every_second_layer(model: PreTrainedModel) -> PreTrainedModel:
    """A new model with layers 0, 2, 4, ... of `model`, and everything else of it.

    A model of 6 layers gives one of 3. The weights are copies.

    Raises:
        CheckpointError: layers that are shared (ALBERT) or fewer than two.
    """
    weights = model.state_dict()
    matches = [_LAYER.fullmatch(name) for name in weights]
    layers = 1 + max((int(match["index"]) for match in matches if match), default=-1)
    if layers < 2:
        raise CheckpointError(
            f"A {type(model).__name__} has {max(layers, 0)} layers of its own to choose from, and "
            f"a student takes every second of at least 2. Remove `student` from the recipe."
        )
    config: Any = copy.deepcopy(model.config)
    config.num_hidden_layers = (layers + 1) // 2
    student = type(model)(config)
    kept = {}
    for (name, value), match in zip(weights.items(), matches, strict=True):
        if match is None:
            kept[name] = value
        elif int(match["index"]) % 2 == 0:
            kept[f"{match['before']}{int(match['index']) // 2}{match['after']}"] = value
    student.load_state_dict(kept)
    return student
