"""Small random models and batches that many tests share."""

import os
from pathlib import Path
from typing import Any

# Before torch is imported: tests are small, and one thread is faster for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from quantkit.data.tokenizer import train_wordpiece
from quantkit.exporter import export
from quantkit.ptq import Quantized, quantize
from tests.cli import Line, finished

ROWS = 300  # reachable word rows of the small model; it declares more


def shared_folder(variable: str, name: str) -> Path:
    """A folder with real data or models; the test is skipped where there is none."""
    folder = Path(os.environ.get(variable, Path(__file__).parents[2] / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no folder {variable}")
    return folder


def small_bert(seed: int = 0, layers: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(
        vocab_size=ROWS + 50,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        num_labels=3,
        id2label={0: "positive", 1: "neutral", 2: "negative"},
        label2id={"positive": 0, "neutral": 1, "negative": 2},
        initializer_range=0.15,  # wide enough that logits differ from text to text
    )
    model = BertForSequenceClassification(BertConfig(**sizes))
    model.eval()
    # A channel a hundred times as wide as the others, as in pretrained encoders.
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            norm: Any = layer.output.LayerNorm
            norm.weight[7] *= 30.0
            layer.intermediate.dense.bias.normal_(0.0, 0.3)
    return model


def batch_of(size: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, ROWS, (size, length), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


@pytest.fixture(scope="session")
def model() -> BertForSequenceClassification:
    return small_bert()


@pytest.fixture(scope="session")
def batches() -> list[dict[str, torch.Tensor]]:
    return [batch_of(8, 12, seed=1), batch_of(4, 30, seed=2)]


@pytest.fixture(scope="session")
def quantized(
    model: BertForSequenceClassification, batches: list[dict[str, torch.Tensor]]
) -> Quantized:
    return quantize(model, batches, reachable_rows=ROWS)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer whose ids all lie below ROWS."""
    words = ["makanan", "enak", "tidak", "sekali", "pelayanan", "buruk", "biasa", "saja"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words]
    trained = train_wordpiece(texts, vocab_size=ROWS)
    trained.model_max_length = 64
    return trained


@pytest.fixture(scope="session")
def folder(
    quantized: Quantized,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The quantized model's exported folder, which tests only read."""
    target = tmp_path_factory.mktemp("exported")
    export(quantized.model, tokenizer, target)
    return target


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below it lies what tests/cli.py makes once for all modules."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def line(base: Path) -> Line:
    """SmSA's whole line, made by one command."""
    return finished(base)
