"""The picture in docs/architecture.md stays true: imports run one way."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import quantkit

PACKAGE = Path(quantkit.__file__).parent

# From the bottom up; what stands on one line may import what stands on lines before it, and
# packages import within themselves.
LAYERS = [
    "errors",
    "files memory ragged config",
    "numerics heads partial layout",
    "integers",
    "tokenization",
    "calibrators algorithms",
    "modules",
    "kernels",
    "encoder",
    "source recurrent_slot slots training_slots recipe_problems",
    "recipe",
    "calibration placement",
    "replay",
    "moments",
    "ptq",
    "qat simulation units",
    "hub tokenizer_files",
    "checkpoint packed student recurrent",
    "hf",
    "data metrics",
    "batching answers",
    "losses calibration_texts trim",
    "prediction optimization distill",
    "method",
    "teacher",
    "closeness",
    "sensitivity budget",
    "mixed_precision",
    "training_setup training_state",
    "train",
    "starting_point training_rows",
    "qat_method",
    "rows providers onnx_file",
    "graph_cache",
    "openvino_backend",
    "session",
    "engine choice bound",
    "runtime",
    "worker",
    "exporter",
    "measure inspection quantized_folder file_check",
    "report runs",
    "evaluation pipeline workbench",
    "distill_line qat_line",
    "comparison study estimate precision",
    "cli",
    "__main__",
]
LEVEL = {name: at for at, line in enumerate(LAYERS) for name in line.split()}


def _imports(path: Path) -> set[str]:
    """Names of quantkit's modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("quantkit.")}
    return found


def test_imports_never_run_upward() -> None:
    upward = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        upward += [
            f"{parts} imports {other}"
            for other in _imports(path)
            if other != parts[0] and LEVEL[other] >= LEVEL[parts[0]]
        ]
    assert upward == []


def test_public_names_are_pinned() -> None:
    assert sorted(quantkit.__all__) == [
        "QuantkitError",
        "Recipe",
        "Session",
        "__version__",
        "export",
        "load",
        "load_packed",
        "load_recipe",
        "quantize",
    ]
    for name in quantkit.__all__:
        first = getattr(quantkit, name)
        # A submodule of the same name would take the public name's place once imported.
        assert isinstance(first, str) or callable(first)
        assert getattr(quantkit, name) is first


def test_every_module_says_what_is_public() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__main__.py":
            assert "__all__" in path.read_text(encoding="utf-8") or path.parent.name == "algorithms"


def _modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    return set(result.stdout.split())


def test_serving_and_help_import_no_torch() -> None:
    heavy = {"torch", "transformers", "accelerate", "datasets", "evaluate", "onnx", "pydantic"}
    assert _modules_after("import quantkit; quantkit.load").isdisjoint(heavy)
    assert _modules_after("import quantkit.cli").isdisjoint(heavy | {"onnxruntime", "numpy"})
    assert _modules_after("import quantkit.worker").isdisjoint(heavy)
