"""Small models, random rows and short runs that the tests of training share.

`quantkit` trains on what `encode` makes; here the rows are made of random tokens directly, so
that their lengths and their numbers of labels are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaTokenizerFast,
)

from quantkit.batching import IGNORED, Encoded, References
from quantkit.heads import Head, Kind
from quantkit.prediction import Outputs
from quantkit.ragged import Ragged
from quantkit.recipe import Finetune, Training
from quantkit.train import Score, TrainingResult, finetune

CLASSES = Head("classification", ("low", "high"))
ASPECTS = Head("aspects", ("none", "bad", "good"), ("food", "price"))
MULTILABEL = Head("multilabel", ("first", "second", "odd"))
REGRESSION = Head("regression")
WORDS = Head("words", ("O", "B-X"))
FEATURES = Head("features")
HEADS: dict[Kind, Head] = {
    head.kind: head for head in (CLASSES, ASPECTS, MULTILABEL, REGRESSION, WORDS, FEATURES)
}
TRAINABLE = (CLASSES, ASPECTS, MULTILABEL, REGRESSION, WORDS)

SETTINGS = Finetune(epochs=3, batch_size=8, lr=1e-3, warmup=0.25, dropout=0.1, save_every=3)
STEPS = 12  # of `run` with these settings and rows: 4 an epoch
VOCABULARY = 40


def byte_level_tokenizer(*, spaced: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer of RoBERTa's kind, with <s> 0, <pad> 1, </s> 2, <unk> 3 and <mask> 4."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=spaced)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = BpeTrainer(
        vocab_size=290,
        special_tokens=special,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["makanan enak tidak sekali pelayanan"] * 3, trainer)
    backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer: PreTrainedTokenizerBase = RobertaTokenizerFast(
        tokenizer_object=backend, add_prefix_space=spaced
    )
    return tokenizer


class Killed(Exception):  # noqa: N818
    """Stands for a kill; no code of quantkit may catch it."""


def make_model(head: Head = CLASSES, layers: int = 2) -> PreTrainedModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.15,  # wide enough that no gradient is near to rounding
    )
    if head.kind != "features":
        config.num_labels = head.outputs
    kinds: dict[str, Any] = {"words": BertForTokenClassification, "features": BertModel}
    model: PreTrainedModel = kinds.get(head.kind, BertForSequenceClassification)(config)
    model.train(False)  # as `from_pretrained` gives it
    return model


def make_rows(rows: int, seed: int, head: Head = CLASSES) -> Encoded:
    """Random tokens between two that mean nothing; the labels follow from the tokens.

    A token from 22 is high. With words, all tokens but the first and the last are words, so
    that rows have 1 to 10 labels.
    """
    random = np.random.default_rng(seed)
    drawn = [
        [2, *random.integers(5, VOCABULARY, size=random.integers(1, 11)).tolist(), 3]
        for _ in range(rows)
    ]
    words = [[-1, *range(len(row) - 2), -1] for row in drawn] if head.kind == "words" else None
    return Encoded(
        head,
        Ragged.of(drawn, np.int32),
        Ragged.of([[0] * len(row) for row in drawn], np.int8),
        _labels(drawn, head),
        np.arange(rows),
        None if words is None else Ragged.of(words, np.int32),
    )


def _labels(rows: Sequence[Sequence[int]], head: Head) -> Any:  # noqa: ANN401
    high = [[int(token >= 22) for token in row] for row in rows]
    match head.kind:
        case "words":
            labels = [[IGNORED, *row[1:-1], IGNORED] for row in high]
            return Ragged.of(labels, np.int32)
        case "aspects":
            return np.array([[row[1] % 3, row[-2] % 3] for row in rows]).reshape(-1, 2)
        case "multilabel":
            labels = [[h[1], h[-2], row[1] % 2] for h, row in zip(high, rows, strict=True)]
            return np.array(labels).reshape(-1, 3)
        case "regression":
            return np.array([(row[1] - 22) / 10 for row in rows], np.float64)
    return np.array([row[1] for row in high], np.int64)


TRAIN, VALIDATION = make_rows(30, 0), make_rows(20, 1)  # the last batch of an epoch is short


def tokens(encoded: Encoded) -> list[list[int]]:
    """The tokens of all rows."""
    return [encoded.ids[row].tolist() for row in range(len(encoded))]


def accuracy(references: References, outputs: Outputs) -> float:
    """The share of rows, or of words, whose class is right."""
    pairs = zip(references, outputs, strict=True)
    return float(np.mean(np.concatenate([np.ravel(a == b.argmax(-1)) for a, b in pairs])))


def confidence(references: References, outputs: Outputs) -> float:
    """The mean probability of the right class, of rows or words: it rises as a model learns."""
    if not isinstance(outputs, np.ndarray):
        references, outputs = np.concatenate(list(references)), np.concatenate(outputs)
    right = np.asarray(references, np.int64)[:, None]
    return float(np.take_along_axis(CLASSES.probabilities(outputs), right, 1).mean())


def rising() -> Score:
    """A score by which the last epoch of a run is its best."""
    calls = count()
    return lambda *_: float(next(calls))


def run(
    model: nn.Module,
    folder: Path | None = None,
    settings: Training = SETTINGS,
    **options: Any,  # noqa: ANN401
) -> TrainingResult:
    """`finetune` on the shared rows, which have two classes, or on others."""
    train, validation = options.pop("train", TRAIN), options.pop("validation", VALIDATION)
    score = confidence if train.head.kind in ("classification", "words") else rising()
    arguments: dict[str, Any] = {"score": score, "progress": False} | options
    return finetune(
        model, train, validation, settings, pad_token_id=0, state_folder=folder, **arguments
    )


def kill_at(step: int) -> Callable[[int], None]:
    def on_step(done: int) -> None:
        if done == step:
            raise Killed

    return on_step


def without_seconds(result: TrainingResult) -> TrainingResult:
    """What two equal runs share; the peak of the memory is the process's, not the run's."""
    times = {"seconds": 0.0, "validation_seconds": 0.0}
    history = tuple(entry | times for entry in result.history)
    return replace(result, seconds=0.0, history=history, peak_bytes=0)


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def largest_difference(a: nn.Module, b: nn.Module) -> tuple[float, str]:
    """The largest difference of two models' weights, beside the largest weight, and its name.

    A constant added to all keys of a head leaves every softmax as it is: the gradient of a
    key's bias is rounding alone, which AdamW blows up to whole steps. It is left out.
    """
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if not name.endswith("key.bias")]
    differences = [
        (float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max()), name)
        for name in names
    ]
    return max(differences)
