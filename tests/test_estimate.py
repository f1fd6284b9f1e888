"""The published formula, on BERT-base by hand and on models small enough to run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from quantkit.errors import CheckpointError, RecipeError
from quantkit.estimate import Estimate, estimate, estimate_recipe, forward_bytes
from quantkit.recipe import Recipe, load_recipe, with_changes
from tests.cli import Line, finished, invoke, succeed

LABELS = {0: "positive", 1: "neutral", 2: "negative"}
LENGTH = 16


def _folder(folder: Path, **sizes: Any) -> Path:  # noqa: ANN401
    """A model folder with a configuration alone; its weights are never opened."""
    config = BertConfig(id2label=LABELS, label2id={v: k for k, v in LABELS.items()}, **sizes)
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture(scope="module")
def bert_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("estimate") / "base", vocab_size=32_000)


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    return BertForSequenceClassification(sizes)


def _recipe(model: Path, **changes: object) -> Recipe:
    values = {"model": str(model), "max_length": LENGTH}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return with_changes(load_recipe("smsa.yaml"), values)


def test_bert_base_has_the_published_bytes(bert_base: Path) -> None:
    """Parameters by hand: tables, 12 layers, pooler and classifier; 4 bytes each."""
    hidden, inner = 768, 3072
    tables = (32_000 + 512 + 2) * hidden + 2 * hidden
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    feed_forward = hidden * inner + inner + inner * hidden + hidden + 2 * hidden
    pooler, classifier = hidden * hidden + hidden, 3 * hidden + 3
    count = tables + 12 * (attention + feed_forward) + pooler + classifier
    found = estimate_recipe(_recipe(bert_base), devices=1)
    assert found.parameters == count == 110_619_651
    assert found.model == found.gradients == 442_478_604
    assert found.moments == 2 * 442_478_604
    assert found.peak == 4 * 442_478_604 + found.activations
    assert found.activations == 32 * found.forward > 0


def test_the_meta_device_keeps_what_a_cpu_keeps(small: PreTrainedModel) -> None:
    with torch.device("meta"):
        shapes = type(small)(small.config)
    assert next(shapes.parameters()).is_meta
    assert forward_bytes(shapes, LENGTH) == forward_bytes(small, LENGTH) > 0


def test_longer_rows_keep_more_and_the_mode_stays(small: PreTrainedModel) -> None:
    small.train(False)
    sizes = [forward_bytes(small, length) for length in (4, 8, 16)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert not small.training


def test_a_forward_pass_keeps_distinct_tensors_once() -> None:
    """A Linear keeps its input [1, 4, 8] of 4 bytes, not its weight; tanh keeps its result."""

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 8)
            self.one, self.two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 6)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = self.table(input_ids)
            return torch.tanh(self.one(x)).sum() + torch.tanh(self.two(x)).sum()

    ids, x, one, two = 4 * 8, 4 * 8 * 4, 4 * 8 * 4, 4 * 6 * 4
    assert forward_bytes(Tiny(), 4) == ids + x + one + two  # type: ignore[arg-type]


def test_half_precision_halves_activations_alone(small: PreTrainedModel) -> None:
    whole = estimate(small, length=LENGTH, batch_size=6, mixed=False)
    mixed = estimate(small, length=LENGTH, batch_size=6, mixed=True)
    assert whole.activations == 6 * whole.forward
    assert mixed.activations == 3 * mixed.forward
    assert (mixed.model, mixed.gradients, mixed.moments) == (
        whole.model,
        whole.gradients,
        whole.moments,
    )


@pytest.mark.parametrize(
    ("changes", "devices", "rows", "copies"),
    [
        ({}, 1, 32, 1),
        ({"finetune__accumulation": 4}, 1, 8, 1),
        ({"finetune__accumulation": 5}, 1, 7, 1),  # the largest part of 32 in 5
        ({}, 2, 16, 2),
        ({"finetune__accumulation": 2}, 4, 4, 2),
        ({"finetune__precision": "bf16"}, 1, 16, 1),  # 32 rows of half the size
    ],
)
def test_accumulation_and_devices_divide_a_batch(
    changes: dict[str, object], devices: int, rows: int, copies: int, tmp_path: Path
) -> None:
    """The gradients of several devices stand twice: a bucket copy for the exchange."""
    folder = _folder(tmp_path / "m", vocab_size=50, hidden_size=24, num_hidden_layers=1)
    found = estimate_recipe(_recipe(folder, **changes), devices)
    assert found.activations == rows * found.forward
    assert found.gradients == copies * found.model
    assert found.moments == 2 * found.model


def test_a_student_is_estimated_and_not_its_teacher(tmp_path: Path) -> None:
    """Three layers of six, as a model that has three."""
    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 36}
    teacher = _folder(tmp_path / "teacher", num_hidden_layers=6, **sizes)
    half = _folder(tmp_path / "half", num_hidden_layers=3, **sizes)
    student = estimate_recipe(_recipe(teacher, student="every-second-layer"), 1)
    assert student == estimate_recipe(_recipe(half), 1)
    assert student.parameters < estimate_recipe(_recipe(teacher), 1).parameters


def test_lines_add_up() -> None:
    found = Estimate(1_234, 4_000_000, 10, 5_000_000, 6_000_000, 7_000_000)
    lines = [line.split() for line in found.lines()]
    assert lines[0][-1] == "1,234"
    sizes = [float(words[-2]) for words in lines[1:]]
    assert sizes == [4.0, 5.0, 6.0, 7.0, 22.0]
    assert found.peak == 22_000_000
    assert {words[-1] for words in lines[1:]} == {"MB"}


def test_a_run_s_measured_figure_stands_beside(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    line: Line = finished(tmp_path_factory.getbasetemp())
    printed = succeed("estimate", "smsa.yaml", "--model", line.checkpoint, "--runs", line.runs)
    measured = [words for words in printed.splitlines() if "measured in" in words]
    assert len(measured) == 1
    assert str(line.runs / "smsa") in measured[0]
    assert float(measured[0].split()[-3]) > 100.0  # a process with torch and the data
    assert "on the GPU" not in printed
    elsewhere = ["--model", line.checkpoint, "--runs", line.runs / "none"]
    assert "measured in" not in succeed("estimate", "smsa.yaml", *elsewhere)


def test_models_that_have_no_configuration_are_refused(tmp_path: Path) -> None:
    for model in ("builtin", "recurrent"):
        recipe = with_changes(load_recipe("smsa.yaml"), {"model": model})
        with pytest.raises(RecipeError, match="is made from its data, and small"):
            estimate_recipe(recipe, 1)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        estimate_recipe(_recipe(tmp_path), 1)
    outcome = invoke("estimate", "smsa.yaml", "--runs", tmp_path)
    assert (outcome.code, "--model FOLDER" in outcome.err) == (2, True)
