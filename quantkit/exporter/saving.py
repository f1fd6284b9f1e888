"""Checking, opening and writing a graph of any size.

A protobuf message holds at most 2 GB. A larger model's tensors lie in a second file beside the
first, `model.onnx_data`, where ONNX Runtime, optimum and transformers.js look for it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from quantkit.files import new_file
from quantkit.onnx_file import DATA_SUFFIX
from quantkit.runtime import import_onnxruntime

__all__ = ["check_model", "open_model", "save_model"]

LARGEST = 2_000_000_000  # bytes of tensors in one file; a message holds 2**31 - 1 in all


def check_model(model: onnx.ModelProto) -> None:
    """The checker of the `onnx` package with shape inference, which raises what is wrong."""
    if not _is_large(model):
        onnx.checker.check_model(model, full_check=True)
        return
    with _on_disk(model) as path:
        onnx.checker.check_model(str(path), full_check=True)


def open_model(model: onnx.ModelProto, options: Any) -> Any:  # noqa: ANN401
    """A session on the CPU provider."""
    runtime = import_onnxruntime()
    if not _is_large(model):
        source: Any = model.SerializeToString()
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    with _on_disk(model) as path:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `path`, and beside it `path` + `_data` if one file cannot hold the tensors.

    Both appear only when they are complete, the tensors first.
    """
    data = path.with_name(path.name + DATA_SUFFIX)
    if not _is_large(model):
        with new_file(path) as partial:
            onnx.save_model(model, partial)
        data.unlink(missing_ok=True)  # of an earlier, larger model
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _on_disk(model, path) as written:
        for final in (data, path):
            written.with_name(final.name).replace(final)


@contextmanager
def _on_disk(model: onnx.ModelProto, target: Path | None = None) -> Iterator[Path]:
    """The model and its tensors in a folder of their own, beside `target` if one is given."""
    name = "model.onnx" if target is None else target.name
    place = tempfile.mkdtemp(prefix=".partial-", dir=None if target is None else target.parent)
    folder = Path(place)
    try:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)  # writing moves the tensors out of the message
        onnx.save_model(
            copy,
            folder / name,
            save_as_external_data=True,
            location=name + DATA_SUFFIX,
        )
        yield folder / name
    finally:
        shutil.rmtree(folder)


def _is_large(model: onnx.ModelProto) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST
