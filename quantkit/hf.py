"""Lets transformers' own `from_pretrained` load packed checkpoints.

    import quantkit.hf
    model = AutoModelForSequenceClassification.from_pretrained("runs/smsa/w8a8")

Without this import `from_pretrained` refuses the folder, because it holds no
`model.safetensors`. Importing it registers the quantization method `quantkit`; transformers
then builds the float skeleton, the quantizer below puts empty integer modules in it, and
transformers fills them from `quantkit.safetensors`.
"""

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quantkit.encoder import unroll
from quantkit.errors import CheckpointError, DependencyError
from quantkit.files import read_json
from quantkit.packed import FORMAT, METADATA, WEIGHTS, empty_modules, read_tensors, rotations_of
from quantkit.placement import Plan, swap
from quantkit.recipe import parse_recipe

__all__ = ["QuantkitConfig", "QuantkitQuantizer"]

if int(transformers.__version__.partition(".")[0]) < 5:
    raise DependencyError(
        f"quantkit.hf needs transformers 5; installed is {transformers.__version__}, which looks "
        f"for the weights before a quantizer can name their file. Use quantkit.load_packed."
    )


@register_quantization_config("quantkit")
class QuantkitConfig(QuantizationConfigMixin):
    """The `quantization_config` of a packed checkpoint's config.json."""

    def __init__(self, format: int = FORMAT, **_: object) -> None:
        self.quant_method: Any = "quantkit"
        self.format = format


@register_quantizer("quantkit")
class QuantkitQuantizer(HfQuantizer):
    """Puts integer modules into a model that transformers is about to fill."""

    requires_calibration = True  # only packed checkpoints can be loaded this way

    def update_attn_implementation(self, config: Any) -> Any:  # noqa: ANN401
        """Name the weights' file: this hook sees the config before the file is looked for."""
        config.transformers_weights = WEIGHTS
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **_: object
    ) -> PreTrainedModel:
        folder = Path(model.config._name_or_path)
        found = getattr(self.quantization_config, "format", None)
        if found != FORMAT:
            raise CheckpointError(
                f"{folder} has format {found!r}; this quantkit reads "
                f"format {FORMAT}. Upgrade quantkit, or quantize again."
            )
        if unroll(model) is not model:
            raise CheckpointError(
                f"{folder} holds an ALBERT that calls one layer several times, each call with "
                f"ranges of its own, which transformers' model has no modules for. Load it with "
                f"quantkit.load_packed({str(folder)!r}).model."
            )
        metadata = read_json(folder / METADATA)
        plan = Plan.from_json(metadata["plan"])
        recipe = parse_recipe(metadata["recipe"], str(folder / METADATA))
        tensors, rotations = read_tensors(folder / WEIGHTS), rotations_of(metadata)
        swap(model, empty_modules(model, plan, recipe, tensors, rotations))
        return model

    @property
    def is_trainable(self) -> bool:
        """Integers have no gradient."""
        return False

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """Packed checkpoints are written by `quantkit.packed.save_packed` only."""
        del safe_serialization
        return False
