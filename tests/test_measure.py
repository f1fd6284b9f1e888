import json
from pathlib import Path

import numpy as np
import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

import quantkit
from quantkit.errors import MeasurementError, QuantkitError
from quantkit.exporter import export
from quantkit.measure import environment, measure
from quantkit.ptq import Quantized
from quantkit.report import Report

TEXTS = ["makanan enak", "pelayanan buruk sekali", "biasa saja"]


@pytest.fixture(scope="module")
def folders(
    model: BertForSequenceClassification,
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("measured")
    for name, torch_model in (("float", model), ("int8", quantized.model)):
        export(torch_model, tokenizer, root / name)
    return {"float": root / "float", "int8": root / "int8"}


def test_every_candidate_is_answered_and_timed(folders: dict[str, Path]) -> None:
    results = measure(folders, TEXTS, shapes=[(1, 8), (4, 16)], rounds=3, repeats=5, threads=1)
    for name, folder in folders.items():
        found = results[name]
        np.testing.assert_allclose(found.logits, quantkit.load(folder).logits(TEXTS), atol=2e-3)
        assert [(x.batch, x.length, x.calls) for x in found.latency] == [(1, 8, 15), (4, 16, 15)]
        assert all(0.0 < x.p50_ms <= x.p90_ms for x in found.latency)
        assert found.peak_bytes > 0
        assert found.imports_bytes > 10e6  # numpy and onnxruntime are larger than that


def test_a_candidate_that_cannot_open_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(MeasurementError, match=r"'broken' failed: .*holds no exported model"):
        measure(
            {"float": folders["float"], "broken": tmp_path}, TEXTS, shapes=[], rounds=0, repeats=0
        )


def test_the_environment_names_what_figures_depend_on() -> None:
    found = environment(threads=3)
    assert found["threads"] == 3
    assert {"onnxruntime", "numpy", "torch", "transformers"} <= found["packages"].keys()
    json.dumps(found)


def test_a_report_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema": 0}))
    with pytest.raises(QuantkitError, match="has schema 0"):
        Report.load(path)
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(QuantkitError, match="is not a report"):
        Report.load(path)
