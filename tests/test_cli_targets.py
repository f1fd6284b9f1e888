"""Targets on the command line, from a run to files that are inspected and opened."""

import json
import shutil
from pathlib import Path

import pytest

import quantkit
from quantkit.errors import CheckpointError
from quantkit.files import read_json
from tests.cli import Line, invoke, succeed


@pytest.fixture
def copied(line: Line, tmp_path: Path) -> Line:
    """The finished line in a runs folder of the test's own."""
    return line._replace(runs=shutil.copytree(line.runs, tmp_path / "runs"))


def test_a_run_is_quantized_for_another_target(copied: Line) -> None:
    printed = succeed("ptq", "smsa", "--target", "portable", "--runs", copied.runs)
    folder = copied.runs / "smsa" / "w8a8-portable"
    path = folder / "onnx" / "portable" / "model_quantized.onnx"
    assert str(path) in printed
    assert read_json(folder / "quantkit.json")["recipe"]["activations"]["symmetric"] is True
    assert read_json(folder / "parity-portable.json")["passed"]
    assert quantkit.load(folder).path == path
    found = json.loads(succeed("inspect", path, "--json"))
    assert (found["target"], found["problems"]) == ("portable", [])
    assert str(path) in succeed("inspect", folder)
    # Its inputs are symmetric, so other targets can have it too.
    succeed("export", folder, "--target", "cpu")
    assert quantkit.load(folder).path == folder / "onnx" / "model_quantized.onnx"


def test_a_float_folder_gets_a_file_for_cuda(copied: Line) -> None:
    folder = copied.runs / "smsa" / "float"
    printed = succeed("export", folder, "--target", "cuda")
    assert str(folder / "onnx" / "cuda" / "model_fp16.onnx") in printed
    parity = read_json(folder / "parity-cuda.json")
    assert parity["passed"]
    assert parity["half_disagreements"] == 0
    with pytest.raises(CheckpointError, match="for cuda"):
        quantkit.load(folder / "onnx" / "cuda" / "model_fp16.onnx")
    assert printed.rstrip().endswith("model_fp16.onnx --device cuda")
    printed = succeed("export", folder, "--target", "cuda-unpadded")
    assert str(folder / "onnx" / "cuda-unpadded" / "model_fp16.onnx") in printed
    assert read_json(folder / "parity-cuda-unpadded.json")["passed"]


@pytest.mark.parametrize("command", [("predict", "makanannya enak", "--model"), ("eval",)])
def test_a_device_that_is_not_there_is_said(command: tuple[str, ...], line: Line) -> None:
    outcome = invoke(*command, line.runs / "smsa" / "w8a8", "--device", "cuda")
    assert outcome.code == 2
    assert "This onnxruntime has no 'cuda' provider" in outcome.err
    assert "quantkit[gpu]" in outcome.err


def test_a_packed_model_with_zero_points_serves_both_but_not_cuda(copied: Line) -> None:
    folder = copied.runs / "smsa" / "w8a8"
    succeed("export", folder, "--target", "portable")
    path = folder / "onnx" / "portable" / "model_quantized.onnx"
    (problem,) = json.loads(succeed("inspect", path, "--json"))["problems"]
    assert "TensorRT does not. For it, quantize with --target portable." in problem
    outcome = invoke("export", folder, "--target", "cuda")
    assert outcome.code == 2
    assert "Quantize again with --target cuda" in outcome.err
