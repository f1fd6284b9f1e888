"""A GPU's answers beside a CPU's, on the CPU: kept, scored and held against the bars."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import quantkit
from quantkit.answers import decisions
from quantkit.heads import Head
from quantkit.metrics import main_score
from quantkit.prediction import predict
from quantkit.worker import read_outputs, write_outputs
from tests.models import small_model
from tests.training import WORDS, make_rows

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cuda_accuracy
import cuda_measure
import cuda_speed
from cuda_models import make_folders
from cuda_tokens import answers, save_encoded

CLASSES = Head("classification", ("negative", "neutral", "positive"))


@pytest.fixture
def given(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """Toy models, tokens, and the answers of two candidates."""
    monkeypatch.setattr(cuda_measure, "SECONDS", 0.0)
    places = {name: tmp_path / name for name in ("work", "models", "results")}
    places["tokens"] = tmp_path / "toy.safetensors"
    save_encoded(make_rows(20, 0, CLASSES), places["tokens"])
    make_folders(cuda_speed.TOY, places["models"])
    places["work"].mkdir()
    for source in ("float", "w8a8"):
        tokenizer.save_pretrained(places["models"] / source)
    inside = ["--toy", "--device", "cpu", "--tokens", str(places["tokens"]), "--work"]
    inside += [str(places["work"]), "--models", str(places["models"]), "--worker"]
    for name in ("float32", "quantkit-int8"):
        assert cuda_speed.main([*inside, name]) == 0
    return places


def test_answers_are_scored_beside_the_cpus(given: dict[str, Path]) -> None:
    texts = make_rows(20, 0, CLASSES)
    kept = given["work"] / "quantkit-int8.npz"
    outputs = read_outputs(kept)
    assert isinstance(outputs, np.ndarray)
    changed = outputs.copy()
    changed[:2] = -changed[:2]  # as if the device had got two rows wrong
    write_outputs(kept, changed)
    task = [str(given[name]) for name in ("work", "models", "tokens")]
    options = ["--task", *task, "--results", str(given["results"])]
    assert cuda_accuracy.main(options) == 0
    report = json.loads((given["results"] / "cuda_accuracy.json").read_text("utf-8"))
    found = report["results"]["toy"]
    assert found["cpu_engines"] == {"float": "torch", "w8a8": "torch"}
    references = texts.references()
    right, wrong = (
        main_score(CLASSES, references, decisions(CLASSES, o)) for o in (outputs, changed)
    )
    entry = found["candidates"]["quantkit-int8"]
    assert (entry["score"]["value"], entry["cpu"]) == pytest.approx((wrong, right))
    assert entry["change"]["value"] == pytest.approx(wrong - right)
    same = float(np.mean(outputs.argmax(-1) == changed.argmax(-1)))
    assert entry["agreement"] == pytest.approx(same)
    assert same < 1.0
    # transformers' float32 and the engine's differ by rounding, not in a label.
    assert found["candidates"]["float32"]["change"]["value"] == 0.0
    bars = report["bars"]
    assert bars[0]["value"] == pytest.approx(100 * abs(wrong - right))
    assert (bars[0]["limit"], bars[1]["limit"]) == (0.5, 0.3)
    assert cuda_accuracy.main([*options, "--check"]) == int(not all(bar["holds"] for bar in bars))


def test_the_bars_by_hand() -> None:
    changes = [{"a": 0.4, "b": -0.1}, {"a": -0.2, "b": 0.3}]
    assert cuda_accuracy.apart(changes) == pytest.approx((0.4, 0.25))


def test_words_are_answered_as_in_prediction(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small_model("Bert", "ForTokenClassification")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = make_rows(9, 0, WORDS)
    found = answers(quantkit.load(tmp_path, engine="torch").run, texts, 0)
    wanted = predict(model, texts, pad_token_id=0)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=0)
