import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import quantkit
from quantkit import providers, runtime
from quantkit.errors import DependencyError
from tests.tiny_onnx import HEADS, write_folder


def test_a_missing_provider_says_what_to_install(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = write_folder(tmp_path / "made", HEADS["classification"], tokenizer)
    with pytest.raises(DependencyError, match=r"quantkit\[gpu\]"):
        quantkit.load(made, device="cuda", engine="onnxruntime")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fallback_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the provider is listed and its libraries are missing: it opens on the CPU."""
    made = write_folder(tmp_path / "made", HEADS["classification"], tokenizer)
    monkeypatch.setattr(runtime, "provider", lambda _: "CUDAExecutionProvider")
    with pytest.raises(DependencyError, match="on CPUExecutionProvider, not on CUDA"):
        quantkit.load(made)


def _pretend_installed(*names: str) -> Callable[[str], object]:
    def distribution(name: str) -> object:
        if name in names:
            return object()
        raise metadata.PackageNotFoundError(name)

    return distribution


def test_two_onnxruntimes_over_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "distribution", _pretend_installed("onnxruntime", "onnxruntime-gpu")
    )
    with pytest.raises(DependencyError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        runtime.import_onnxruntime()


def test_no_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", _pretend_installed())
    monkeypatch.setattr(providers, "find_spec", lambda _name: None)
    with pytest.raises(DependencyError, match=r"pip install 'quantkit\[cpu\]'"):
        runtime.import_onnxruntime()


def test_threads_follow_the_affinity() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from quantkit.runtime import available_threads; print(available_threads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2", "avx512_vnni"}, False), ({"avx2"}, True), (set(), True), ({"asimd"}, False)],
)
def test_the_exactness_switch_is_set_only_where_products_saturate(
    flags: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "cpu_flags", lambda: frozenset(flags))
    options = runtime.session_options()
    if expected:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")
