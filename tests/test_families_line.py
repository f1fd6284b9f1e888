"""Each family's smallest member goes the whole line, from a pretrained folder to answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quantkit.checkpoint import save_float
from quantkit.data.tokenizer import train_wordpiece
from quantkit.evaluation import evaluate_folder
from quantkit.runs import Run
from quantkit.runtime import load
from tests.cli import changes, feelings, succeed, write_smsa
from tests.training import byte_level_tokenizer

SIZES: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=66,
    initializer_range=0.15,
)
# The model, as pretraining leaves it, and what differs from BERT's sizes.
PRETRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertForMaskedLM", {}),
    "Albert": ("AlbertForMaskedLM", {"embedding_size": 16}),
    "DistilBert": ("DistilBertForMaskedLM", {"hidden_dim": 64}),
    "Roberta": ("RobertaForMaskedLM", {"pad_token_id": 1, "type_vocab_size": 1}),
    "XLMRoberta": ("XLMRobertaForMaskedLM", {"pad_token_id": 1, "type_vocab_size": 1}),
    "Electra": ("ElectraForPreTraining", {"embedding_size": 16}),
}


def save_pretrained(family: str, folder: Path) -> None:
    name, settings = PRETRAINED[family]
    tokenizer = (
        byte_level_tokenizer()
        if "pad_token_id" in settings
        else train_wordpiece([text for text, _ in feelings()], vocab_size=200)
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **SIZES, vocab_size=len(tokenizer) + 20, **settings
    )
    save_float(getattr(transformers, name)(config), tokenizer, folder)


@pytest.mark.parametrize("family", PRETRAINED)
def test_a_family_goes_from_pretraining_to_an_integer_file(family: str, tmp_path: Path) -> None:
    save_pretrained(family, tmp_path / "model")
    data, runs = write_smsa(tmp_path / "data"), tmp_path / "runs"
    values = changes(
        {"finetune.lr": "3e-3", "finetune.batch_size": 16, "calibration.samples": 16},
        finetune__epochs=2,
        max_length=32,
    )
    places = ["--data", data, "--runs", runs, *values]
    succeed("finetune", "smsa.yaml", "--model", tmp_path / "model", *places)
    succeed("ptq", "smsa", "--runs", runs)
    run = Run(runs / "smsa")
    found = evaluate_folder(run.quantized_folder(run.recipe()), "", None, "test")
    session = load(run.quantized_folder(run.recipe()))
    assert found.rows > 0
    assert 0.0 <= found.scores["accuracy"] <= 1.0
    assert {answer.to_json()["label"] for answer in session.predict(["makanan enak"])} <= {
        *session.labels
    }
    losses = [entry["train_loss"] for entry in run.training()["history"]]
    assert losses[1] < losses[0]
