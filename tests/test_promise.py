"""The promise itself, on the built-in task: 8 bits answer like float, and ONNX like torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import quantkit
from quantkit.answers import decisions
from quantkit.batching import Encoded, encode
from quantkit.checkpoint import builtin_model, reachable_rows
from quantkit.data import TaskData, inputs_of, load_task, references_of
from quantkit.data.tokenizer import train_wordpiece
from quantkit.exporter import export
from quantkit.metrics import agreement, main_score
from quantkit.pipeline import calibration_batches
from quantkit.prediction import predict
from quantkit.ptq import quantize
from quantkit.recipe import builtin_recipe
from quantkit.train import finetune

ROWS = 2400  # of the 6,000 training texts: enough to learn, quick enough for a test
LIMIT = 64
RECIPE = builtin_recipe()

Answers = dict[str, np.ndarray]


def _encoded(tokenizer: PreTrainedTokenizerBase, task: TaskData, split: str, count: int) -> Encoded:
    rows = task.splits[split].select(range(count))
    references = references_of(rows, task.head)
    return encode(tokenizer, inputs_of(rows, task.head), task.head, references, LIMIT)


def _trained(task: TaskData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = train_wordpiece(task.splits["train"]["text"])
    torch.manual_seed(0)
    model = builtin_model(tokenizer, task.head)
    finetune(
        model,
        _encoded(tokenizer, task, "train", ROWS),
        _encoded(tokenizer, task, "validation", 200),
        replace(RECIPE.finetune, epochs=3),
        pad_token_id=0,
        score=lambda labels, outputs: main_score(task.head, labels, decisions(task.head, outputs)),
        state_folder=None,
        progress=False,
    )
    return model, tokenizer


@pytest.fixture(scope="module")
def task() -> TaskData:
    return load_task("builtin", None)


@pytest.fixture(scope="module")
def answers(task: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Labels [1000] of the test texts: the truth, float, 8-bit torch, 8-bit ONNX."""
    model, tokenizer = _trained(task)
    inputs = inputs_of(task.splits["train"], task.head)
    quantized = quantize(
        model,
        calibration_batches(model, tokenizer, inputs, RECIPE, LIMIT),
        recipe=RECIPE,
        reachable_rows=reachable_rows(tokenizer),
    )
    folder: Path = tmp_path_factory.mktemp("promise")
    export(quantized.model, tokenizer, folder, max_length=LIMIT)
    test = task.splits["test"]
    rows = _encoded(tokenizer, task, "test", len(test))
    outputs = {
        "float": predict(model, rows, pad_token_id=0),
        "int8": predict(quantized.model, rows, pad_token_id=0),
        "onnx": quantkit.load(folder).outputs(inputs_of(test, task.head)),
    }
    found = {name: np.asarray(decisions(task.head, each)) for name, each in outputs.items()}
    return {"truth": np.asarray(test["label"]), **found}


def _macro_f1(task: TaskData, answers: Answers, name: str) -> float:
    return main_score(task.head, answers["truth"], answers[name])


def test_float_has_learned_the_task(task: TaskData, answers: Answers) -> None:
    assert len(answers["truth"]) == 1000
    assert _macro_f1(task, answers, "float") > 0.6


def test_eight_bits_cost_less_than_a_point(task: TaskData, answers: Answers) -> None:
    assert _macro_f1(task, answers, "float") - _macro_f1(task, answers, "int8") <= 0.010
    assert agreement(task.head, answers["float"], answers["int8"]) >= 0.985


def test_the_file_answers_like_the_torch_model(task: TaskData, answers: Answers) -> None:
    assert agreement(task.head, answers["int8"], answers["onnx"]) >= 0.999
