import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.answers import Outputs
from quantkit.errors import QuantkitError
from quantkit.exporter.inspect import Components
from quantkit.heads import Head
from quantkit.measure import Latency, Measured
from quantkit.metrics import MAIN
from quantkit.report import SCHEMA, Report, candidate_report, report_rows, save_report, to_markdown
from tests.tiny_onnx import HEADS

SIZES = {
    "float": Components(40_000_000, 50_000_000, 9_000_000, 1_000_000),
    "int8": Components(10_000_000, 13_000_000, 1_500_000, 500_000),
}
HISTORY = (
    dict(epoch=1, train_loss=0.9, validation_loss=0.8, validation_score=0.7, lr=2e-5, seconds=10.0),
    dict(epoch=2, train_loss=0.5, validation_loss=0.6, validation_score=0.8, lr=1e-5, seconds=9.5),
)
TRAINING = {
    "seconds": 19.5,
    "peak_bytes": 2_000_000_000,
    "device_peak_bytes": None,
    "history": [{"epoch": 1, "validation_seconds": 1.5}, {"epoch": 2, "validation_seconds": 2.0}],
}


def measured(outputs: Outputs) -> Measured:
    return Measured(outputs, (Latency(1, 16, 1.5, 2.0, 10),), 0.25, 90_000_000, 60_000_000)


def report_of(head: Head, references: Any, outputs: dict[str, Outputs]) -> Report:  # noqa: ANN401
    """A report of the candidates float and int8."""
    results = {name: measured(values) for name, values in outputs.items()}
    candidates = tuple(
        candidate_report(
            name,
            f"{name}/onnx/model.onnx",
            result,
            head=head,
            references=references,
            components=SIZES[name],
            parity={"passed": True},
            parameters=110_000_000,
            baseline=None if name == "float" else results["float"],
            training=TRAINING if name == "float" else None,
        )
        for name, result in results.items()
    )
    return Report(
        schema=SCHEMA,
        name="coba",
        task=head.kind,
        head=head.to_json(),
        main=MAIN[head.kind],
        recipe={"name": "coba"},
        recipe_hash="abc123",
        environment={
            "cpu": "a processor",
            "cpu_flags": ["avx2"],
            "threads": 2,
            "python": "3.11",
            "packages": {"numpy": "2.0"},
        },
        test_rows=len(outputs["float"]),
        max_length=128,
        seed=1,
        trimmed_bytes=20_000_000,
        candidates=candidates,
        notes=("a note",),
        curves=({"step": 1.0, "loss": 0.9, "lr": 2e-5},),
        history=HISTORY,
    )


@pytest.fixture
def classified() -> Report:
    """Float is right in all of 8 rows; int8 errs in one of the third class."""
    references = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    answers = np.array([0, 1, 2, 0, 1, 0, 0, 1])
    each = np.eye(3, dtype=np.float32)
    outputs: dict[str, Outputs] = {"float": each[references], "int8": each[answers]}
    return report_of(HEADS["classification"], references, outputs)


@pytest.fixture
def tagged() -> Report:
    """Sentences of 3, 1 and 2 words; int8 misses the second of two chunks."""
    references = [np.array([1, 2, 0]), np.array([3]), np.array([0, 0])]
    answers = [np.array([1, 2, 0]), np.array([0]), np.array([0, 0])]
    each = np.eye(4, dtype=np.float32)
    outputs: dict[str, Outputs] = {
        "float": [each[row] for row in references],
        "int8": [each[row] for row in answers],
    }
    return report_of(HEADS["words"], references, outputs)


def cells(lines: list[str], title: str) -> list[str]:
    """What the table says in the row `title`."""
    (line,) = [line for line in lines if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_classification_is_scored(classified: Report) -> None:
    plain, small = classified.candidates
    assert list(plain.scores) == ["macro_f1", "accuracy"]
    assert plain.scores["macro_f1"].value == 1.0
    assert small.scores["accuracy"].value == pytest.approx(7 / 8)
    expected = (6 / 7 + 1 + 2 / 3) / 3  # F1 of the three classes
    assert small.scores["macro_f1"].value == pytest.approx(expected)
    assert small.table["macro_recall"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert (plain.change, plain.agreement) == (None, None)
    assert small.change is not None
    assert small.change.value == pytest.approx(expected - 1)
    assert small.change.low <= small.change.value <= small.change.high
    assert small.agreement == pytest.approx(7 / 8)
    assert [row.name for row in small.classes] == ["positive", "neutral", "negative"]
    assert small.classes[2].recall == pytest.approx(1 / 2)
    assert small.confusion == [[3, 0, 0], [0, 3, 0], [1, 0, 1]]
    assert plain.training == {
        "seconds": 19.5,
        "validation_seconds": 3.5,
        "peak_bytes": 2_000_000_000,
        "device_peak_bytes": None,
    }


def test_words_are_scored_by_chunks(tagged: Report) -> None:
    plain, small = tagged.candidates
    assert list(plain.scores) == ["chunk_f1", "accuracy"]
    assert plain.scores["chunk_f1"].value == 1.0
    assert small.scores["chunk_f1"].value == pytest.approx(1 / 2)  # PER found, LOC missed
    assert small.agreement == pytest.approx(5 / 6)
    assert [(row.name, row.f1, row.support) for row in small.classes] == [
        ("PER", 1.0, 1),
        ("LOC", 0.0, 1),
    ]
    assert small.confusion is not None
    assert small.confusion[3] == [1, 0, 0, 0]


@pytest.mark.parametrize("kind", ["aspects", "multilabel", "regression", "features"])
def test_every_kind_is_scored_and_written(kind: str, tmp_path: Path) -> None:
    head = HEADS[kind]
    outputs = np.random.default_rng(0).normal(size=(20, head.outputs or 6)).astype(np.float32)
    other = outputs.copy()
    other[0] *= -1
    references = None if kind == "features" else head.decide(outputs)
    report = report_of(head, references, {"float": outputs, "int8": other})
    plain, small = report.candidates
    assert next(iter(plain.scores)) == MAIN[head.kind] == report.main
    assert plain.scores[report.main].value == pytest.approx(1.0)
    assert small.scores[report.main].value < 1.0
    assert small.change is not None
    assert small.change.value < 0
    save_report(report, tmp_path)
    assert Report.load(tmp_path / "report.json") == report


def test_references_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match="classification is scored against references"):
        report_of(HEADS["classification"], None, {"float": np.eye(3, dtype=np.float32)})


@pytest.mark.parametrize("kind", ["classified", "tagged"])
def test_a_report_survives_its_file(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    report: Report = request.getfixturevalue(kind)
    save_report(report, tmp_path)
    assert Report.load(tmp_path / "report.json") == report
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == to_markdown(report)


def test_the_table_of_a_classification(classified: Report) -> None:
    lines = report_rows(classified)
    assert lines[:2] == ["| | float | int8 |", "| --- | ---: | ---: |"]
    assert cells(lines, "macro F1, %")[0] == "100.0 [100.0, 100.0]"
    assert cells(lines, "accuracy, %")[1].startswith("87.5 [")
    assert cells(lines, "change of macro F1, points")[0] == ""
    assert cells(lines, "change of macro F1, points")[1].startswith("-15.87 [")
    assert cells(lines, "labels equal to float, %") == ["", "87.5"]
    assert cells(lines, "macro precision, %") == ["100.0", "91.7"]
    assert cells(lines, "weighted F1, %")[0] == "100.0"
    assert cells(lines, "smaller than float") == ["1.00x", "4.00x"]
    assert cells(lines, "smaller than trimmed float") == ["0.80x", "3.20x"]
    assert cells(lines, "parameters, millions") == ["110.00", "110.00"]
    assert cells(lines, "1 x 16 tokens, ms") == ["1.50 / 2.00", "1.50 / 2.00"]
    assert cells(lines, "training, s") == ["20", ""]
    assert cells(lines, "of it validation, s") == ["4", ""]
    assert cells(lines, "peak memory of training, MB") == ["2000", ""]
    assert not any("GPU" in line for line in lines)
    assert len({line.count("|") for line in lines}) == 1


def test_the_markdown_shows_classes_confusion_and_epochs(classified: Report) -> None:
    lines = to_markdown(classified).splitlines()
    assert lines[0] == "# coba: classification, 8 test rows"
    assert "> a note" in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## Classes, float",
        "## Classes, int8",
        "## Training",
    ]
    assert "| negative | 100.0 | 50.0 | 66.7 | 2 |" in lines
    assert "| | positive | neutral | negative |" in lines
    assert "| negative | 1 | 0 | 1 |" in lines
    at = lines.index("## Training")
    assert lines[at + 2 : at + 6] == [
        "| epoch | training loss | validation loss | validation macro F1, % | learning rate | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| 1 | 0.9000 | 0.8000 | 70.0 | 2.00e-05 | 10.0 |",
        "| 2 | 0.5000 | 0.6000 | 80.0 | 1.00e-05 | 9.5 |",
    ]


def test_the_markdown_of_words(tagged: Report) -> None:
    text = to_markdown(tagged)
    lines = text.splitlines()
    assert cells(lines, "chunk F1, %")[1].startswith("50.0 [")
    assert cells(lines, "change of chunk F1, points")[1].startswith("-50.00 [")
    assert "chunk precision, %" in text
    assert "| LOC | 0.0 | 0.0 | 0.0 | 1 |" in lines
    assert "| B-LOC | 1 | 0 | 0 | 0 |" in lines
    assert "validation chunk F1, %" in text


def test_correlations_are_no_percentages() -> None:
    values = np.arange(10, dtype=np.float32)[:, None]
    report = report_of(HEADS["regression"], values[:, 0], {"float": values, "int8": values * 2})
    lines = report_rows(report)
    assert cells(lines, "Pearson correlation")[1] == "1.0000 [1.0000, 1.0000]"
    assert cells(lines, "change of Pearson correlation")[1] == "+0.0000 [+0.0000, +0.0000]"
    assert cells(lines, "correlation with float") == ["", "1.0000"]
    assert cells(lines, "MAE") == ["0.0000", "4.5000"]
    assert "## Classes" not in to_markdown(report)


def test_names_cannot_break_a_table_and_wide_matrices_stay_out(classified: Report) -> None:
    odd = replace(classified, head=Head("classification", ("a|b", "c\nd", "e")).to_json())
    assert "| | a\\|b | c d | e |" in to_markdown(odd).splitlines()
    labels = tuple(f"tag{at}" for at in range(21))
    first = replace(classified.candidates[0], confusion=np.eye(21, dtype=int).tolist())
    wide = replace(
        classified, head=Head("classification", labels).to_json(), candidates=(first,), history=()
    )
    text = to_markdown(wide)
    assert text.count("The confusion matrix of 21 labels is in report.json.") == 1
    assert "tag20" not in text
    assert "## Training" not in text


def test_a_report_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for schema in (0, 1):
        path.write_text(json.dumps({"schema": schema}))
        with pytest.raises(QuantkitError, match=f"has schema {schema}; this quantkit reads 2"):
            Report.load(path)
    path.write_text(json.dumps({"schema": SCHEMA}))
    with pytest.raises(QuantkitError, match="is not a report"):
        Report.load(path)
