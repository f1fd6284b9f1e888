"""The command line: arguments to a recipe, one verb, and a few lines on what came out.

Only errors and typer are imported at the top of these modules, so that `--help` answers at
once; a test pins the option values to the recipe's own.
"""

from quantkit.cli import inspecting, learning, sensitivity, serving, studies, training
from quantkit.cli.app import app, main

__all__ = [
    "app",
    "inspecting",
    "learning",
    "main",
    "sensitivity",
    "serving",
    "studies",
    "training",
]
