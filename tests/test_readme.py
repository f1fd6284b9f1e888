"""What README.md shows is true: its code runs, its figures come from committed files."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from quantkit.report import Report, report_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _shown(name: str) -> tuple[Path, list[str]]:
    found = re.search(rf"<!-- {name}: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert found, f"README.md has no block {name}"
    return ROOT / found[1], [line for line in found[2].splitlines() if line]


@pytest.mark.parametrize("name", ["builtin", "smsa"])
def test_tables_are_those_of_the_committed_reports(name: str) -> None:
    path, lines = _shown(name)
    assert lines == report_rows(Report.load(path))


def test_the_speed_table_is_that_of_the_committed_benchmark() -> None:
    path, lines = _shown("cpu_int8")
    assert lines == json.loads(path.read_text(encoding="utf-8"))["results"]["table"]


def test_the_library_example_runs(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("my-model")
    tokenizer.save_pretrained("my-model")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert "Prediction(label=" in printed.getvalue()
    assert (tmp_path / "my-model-int8" / "onnx" / "model_quantized.onnx").is_file()
