"""quantkit: fine-tune, quantize, export and measure BERT-family encoders.

The public names are imported on first use, so that `import quantkit` and serving with
`quantkit.load` never import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> module that defines it
_HOME = {
    "QuantkitError": "quantkit.errors",
    "Recipe": "quantkit.recipe",
    "Session": "quantkit.runtime",
    "export": "quantkit.exporter",
    "load": "quantkit.runtime",
    "load_packed": "quantkit.packed",
    "load_recipe": "quantkit.recipe",
    "quantize": "quantkit.ptq",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'quantkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
