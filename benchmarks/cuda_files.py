"""ONNX files for `cuda_speed.py` of seeded random weights; these take quantkit's `train` extra."""

from collections.abc import Sequence
from pathlib import Path

import torch
from cuda_measure import full_arrays
from cuda_models import Sizes, random_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel

from quantkit.exporter.bert import build
from quantkit.exporter.folder import export_path
from quantkit.exporter.saving import save_model
from quantkit.onnx_file import Target
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, with_bits, with_changes, with_target

__all__ = ["make_files"]

_QUICK: dict[str, object] = {"rounding": {"name": "nearest"}, "smoothing": {"name": "none"}}


def make_files(sizes: Sizes, folder: Path, targets: Sequence[Target]) -> None:
    """Write ONNX files of the same float weights, and of 8-bit and 4-bit codes.

    Exporting would prove that they answer as their models do, which tests have done. A folder with
    a tokenizer, which is written last, is kept.

    Args:
        sizes: of the model.
        folder: holds `float`, `w8a8` and `w4a16`.
        targets: that read the same codes.
    """
    tokenizer = Tokenizer(WordLevel({f"w{at}": at for at in range(sizes.vocab)}, "w0"))
    for name, bits in (("float", 0), ("w8a8", 8), ("w4a16", 4)):
        done = folder / name / "tokenizer.json"
        if done.is_file():
            continue
        model = _model(sizes, bits, targets[0])
        for target in targets:
            path = export_path(model, folder / name, target)
            save_model(build(model, {"quantkit.target": target}, target), path)
        tokenizer.save(str(done))


def _model(sizes: Sizes, bits: int, target: Target) -> PreTrainedModel:
    """A float model, of 0 bits, or one with 8-bit inputs, or one with 4-bit weights alone."""
    model = random_model(sizes)
    model.train(False)
    if not bits:
        return model
    recipe = with_target(with_bits(Recipe(name="files", task="none", model="none"), bits), target)
    recipe = with_changes(recipe, _QUICK | ({"activations.bits": 16} if bits == 4 else {}))
    batch = full_arrays(4, 16, sizes.vocab)
    tokens = {name: torch.from_numpy(values) for name, values in batch.items()}
    return quantize(model, [tokens], recipe=recipe).model
