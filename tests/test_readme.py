"""What README.md shows is true: its code runs, its figures come from committed files."""

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from quantkit.report import Report, report_rows

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from update_readme import BLOCK, block_lines, pages  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _shown() -> list[tuple[str, str, list[str]]]:
    """Name, source and lines of every block."""
    found = re.findall(r"<!-- (\w+): (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
    return [(name, source, [x for x in lines.splitlines() if x]) for name, source, lines in found]


def test_every_table_is_there() -> None:
    names = [name for name, _, _ in _shown()]
    quantized = ["units", "nearness", "units", "units", "overhead"]
    assert names == ["builtin", "indonlu", *quantized, "smsa", "ppkm", "recurrent", "cpu_latency"]


@pytest.mark.parametrize(("name", "source", "lines"), _shown())
def test_tables_are_those_of_the_committed_files(name: str, source: str, lines: list[str]) -> None:
    assert lines == block_lines(name, source)


def test_tables_of_the_docs_are_those_of_the_committed_files() -> None:
    for page in pages()[1:]:
        for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
            shown = [line for line in found.group(0).splitlines()[1:-1] if line]
            assert shown == block_lines(*found.groups())


def test_a_report_in_the_readme_is_a_report_of_this_version() -> None:
    for name, source, lines in _shown():
        if name in ("builtin", "smsa"):
            assert lines == report_rows(Report.load(ROOT / source))


def test_the_library_example_runs(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("my-model")
    tokenizer.save_pretrained("my-model")
    printed = []
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for code in (blocks[0], blocks[-1]):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, "README.md", "exec"), {})
        printed.append(said.getvalue())
    library, plain = printed
    assert "Prediction(label=" in library
    # The text that both answer has the same label in plain onnxruntime.
    (label,) = re.findall(r"Prediction\(label='(\w+)'", library)
    assert plain.startswith(f"['{label}', '")
    assert (tmp_path / "my-model-int8" / "onnx" / "model_quantized.onnx").is_file()
