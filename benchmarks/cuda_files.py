"""ONNX files for `cuda_speed.py` of seeded random weights; these take quantkit's `train` extra."""

from collections.abc import Sequence
from pathlib import Path

import torch
from cuda_measure import full_arrays
from cuda_models import Sizes, random_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from quantkit.exporter.bert import build
from quantkit.exporter.folder import export_path
from quantkit.exporter.saving import save_model
from quantkit.onnx_file import Target
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, with_bits, with_changes, with_target

__all__ = ["make_files"]

_QUICK = {"rounding": {"name": "nearest"}, "smoothing": {"name": "none"}}


def make_files(sizes: Sizes, folder: Path, targets: Sequence[Target]) -> None:
    """Write ONNX files of the same float weights, and of 8-bit and 4-bit codes.

    Exporting would prove that they answer as their models do, which tests have done.
    """
    tokenizer = Tokenizer(WordLevel({f"w{at}": at for at in range(sizes.vocab)}, "w0"))
    plain = Recipe(name="files", task="none", model="none")
    for name, bits in (("float", 0), ("w8a8", 8), ("w4a16", 4)):
        tokenizer.save(str(folder / name / "tokenizer.json"))
        for target in targets:
            model = random_model(sizes)
            model.train(False)
            if bits:
                recipe = with_changes(with_target(with_bits(plain, bits), target), _QUICK)
                if name == "w4a16":
                    recipe = with_changes(recipe, {"activations.bits": 16})
                batch = full_arrays(4, 16, sizes.vocab)
                tokens = {each: torch.from_numpy(values) for each, values in batch.items()}
                model = quantize(model, [tokens], recipe=recipe).model
            path = export_path(model, folder / name, target)
            if not path.is_file():
                save_model(build(model, {"quantkit.target": target}, target), path)
