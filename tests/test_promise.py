"""The promise itself, on the built-in task: 8 bits answer like float, and ONNX like torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import quantkit
from quantkit.batching import Encoded, encode
from quantkit.checkpoint import builtin_model, reachable_rows
from quantkit.data import TaskData, load_task
from quantkit.data.tokenizer import train_wordpiece
from quantkit.exporter import export
from quantkit.metrics import agreement, classification_scores
from quantkit.pipeline import calibration_batches
from quantkit.ptq import quantize
from quantkit.recipe import builtin_recipe
from quantkit.train import finetune, predict_logits

ROWS = 2400  # of the 6,000 training texts: enough to learn, quick enough for a test
RECIPE = builtin_recipe()


def _trained(task: TaskData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = train_wordpiece(task.splits["train"]["text"])
    torch.manual_seed(0)
    model = builtin_model(tokenizer, task.labels)

    def encoded(split: str, count: int) -> Encoded:
        rows = task.splits[split][:count]
        return encode(tokenizer, rows["text"], rows["label"], 64)

    finetune(
        model,
        encoded("train", ROWS),
        encoded("validation", 200),
        replace(RECIPE.finetune, epochs=3),
        pad_token_id=0,
        classes=3,
        score=lambda labels, answers: float((labels == answers).mean()),
        state_folder=None,
        progress=False,
    )
    return model, tokenizer


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Labels [1000] of the test texts: the truth, float, 8-bit torch, 8-bit ONNX."""
    task = load_task("builtin", None)
    model, tokenizer = _trained(task)
    texts = list(task.splits["train"]["text"])
    quantized = quantize(
        model,
        calibration_batches(tokenizer, texts, RECIPE, 64),
        recipe=RECIPE,
        reachable_rows=reachable_rows(tokenizer),
    )
    folder: Path = tmp_path_factory.mktemp("promise")
    export(quantized.model, tokenizer, folder, max_length=64)
    test = task.splits["test"]
    rows = encode(tokenizer, test["text"], test["label"], 64)
    return {
        "truth": np.asarray(test["label"]),
        "float": predict_logits(model, rows, pad_token_id=0).argmax(1),
        "int8": predict_logits(quantized.model, rows, pad_token_id=0).argmax(1),
        "onnx": quantkit.load(folder).logits(test["text"]).argmax(1),
    }


def _macro_f1(answers: dict[str, np.ndarray], name: str) -> float:
    return classification_scores(answers["truth"], answers[name], 3)["macro_f1"]


def test_float_has_learned_the_task(answers: dict[str, np.ndarray]) -> None:
    assert _macro_f1(answers, "float") > 0.6


def test_eight_bits_cost_less_than_a_point(answers: dict[str, np.ndarray]) -> None:
    assert _macro_f1(answers, "float") - _macro_f1(answers, "int8") <= 0.010
    assert agreement(answers["float"], answers["int8"]) >= 0.985


def test_the_file_answers_like_the_torch_model(answers: dict[str, np.ndarray]) -> None:
    assert agreement(answers["int8"], answers["onnx"]) >= 0.999
