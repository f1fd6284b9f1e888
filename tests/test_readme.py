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

from update_readme import block_lines  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _shown() -> list[tuple[str, str, list[str]]]:
    """Name, source and lines of every block."""
    found = re.findall(r"<!-- (\w+): (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
    return [(name, source, [x for x in lines.splitlines() if x]) for name, source, lines in found]


def test_every_table_is_there() -> None:
    names = [name for name, _, _ in _shown()]
    assert names == ["builtin", "indonlu", "smsa", "ppkm", "recurrent", "cpu_int8"]


@pytest.mark.parametrize(("name", "source", "lines"), _shown())
def test_tables_are_those_of_the_committed_files(name: str, source: str, lines: list[str]) -> None:
    assert lines == block_lines(name, source)


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
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert "Prediction(label=" in printed.getvalue()
    assert (tmp_path / "my-model-int8" / "onnx" / "model_quantized.onnx").is_file()
