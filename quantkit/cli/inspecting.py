"""The command inspect."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.app import app
from quantkit.cli.options import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantkit.inspection import Inspection

__all__ = ["inspect"]


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Any ONNX file, or an exported folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="All that was found, as JSON.")] = False,
) -> None:
    """What an ONNX file holds, what ONNX Runtime makes of it, and what is wrong with it."""
    from quantkit.inspection import inspect_file
    from quantkit.onnx_file import find_onnx

    found = inspect_file(find_onnx(file) if file.is_dir() else file)
    if as_json:
        say(json.dumps(found.to_json(), indent=2))
        return
    for line in _lines(found):
        say(line)


def _lines(found: "Inspection") -> list[str]:
    """What a person reads, the problems last."""
    opset = ", ".join(f"{domain} {version}" for domain, version in found.opset.items())
    made_by = f", made by {found.made_by}" if found.made_by else ""
    least = f", onnxruntime {found.least_onnxruntime} and later" if found.least_onnxruntime else ""
    target = f", for {found.target}" if found.target else ""
    lines = [
        f"{found.file}: {found.size:,} bytes{made_by}{target}",
        f"opset {opset}; IR {found.ir_version}{least}",
        "bytes       " + _listed({name: f"{size:,}" for name, size in found.bytes.items()}),
        "types       " + _listed({name: f"{size:,}" for name, size in found.kinds.items()}),
        *_products(found),
        "operators   " + _listed(found.operators),
    ]
    if found.host_only:
        lines.append("no CUDA kernel: " + _listed(found.host_only))
    if not found.problems:
        return [*lines, "Nothing wrong was found."]
    return [*lines, "Problems:", *(f"  - {problem}" for problem in found.problems)]


def _products(found: "Inspection") -> list[str]:
    """Products by precision, those with weights and those of attention apart."""
    lines = []
    for weights, what in ((True, "products"), (False, "attention")):
        counts: Counter[str] = Counter(p.precision for p in found.products if p.weights is weights)
        if counts:
            lines.append(f"{what:<12}" + _listed(counts))
    return lines


def _listed(values: "Mapping[str, object]") -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
