"""Float checkpoints: any Hugging Face model by name or folder, and the built-in small BERT."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub.constants import ENDPOINT
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from quantkit.errors import CheckpointError
from quantkit.ptq import check_finite

__all__ = [
    "builtin_model",
    "label_names",
    "length_limit",
    "load_float",
    "load_for_training",
    "reachable_rows",
    "save_float",
]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

# Parts that a pretrained checkpoint need not hold: they are trained with the task.
_TASK_PARTS = ("classifier.", "bert.pooler.")


def load_for_training(
    source: str, labels: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder with a fresh head for `labels`, and its tokenizer.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        labels: the classes, in the order of their ids.

    Raises:
        CheckpointError: not found, offline without a cache, incomplete, or NaN weights.
    """
    names = dict(enumerate(labels))
    return _load(
        source,
        optional=_TASK_PARTS,
        num_labels=len(labels),
        id2label=names,
        label2id={label: index for index, label in names.items()},
        ignore_mismatched_sizes=True,
    )


def load_float(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned float classifier and its tokenizer; every weight must be in the file.

    Raises:
        CheckpointError: as `load_for_training`, or a head that is missing.
    """
    return _load(str(source), optional=())


def save_float(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer's files into `folder`."""
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def builtin_model(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> PreTrainedModel:
    """An untrained BERT of 4 layers x 256: the stand-in for IndoBERT that needs no network."""
    names = dict(enumerate(labels))
    sizes: dict[str, Any] = dict(
        vocab_size=reachable_rows(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=len(labels),
        id2label=names,
        label2id={label: index for index, label in names.items()},
    )
    return BertForSequenceClassification(BertConfig(**sizes))


def reachable_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest token id that the tokenizer can produce, plus one.

    IndoBERT-base declares 50,000 rows; its tokenizer reaches 30,521 of them.
    """
    return max(tokenizer.get_vocab().values()) + 1


def label_names(model: PreTrainedModel) -> list[str]:
    """The classes of a classifier, in the order of their ids."""
    names: Mapping[Any, str] = model.config.id2label or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def length_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requested: int | None
) -> int:
    """Tokens a text may have: the least of the request, the position table and the tokenizer.

    IndoBERT's tokenizer says 1e30, so the position table decides.
    """
    limits = [int(model.config.max_position_embeddings), int(tokenizer.model_max_length)]
    return min(limits if requested is None else [*limits, requested])


def _load(
    source: str, *, optional: tuple[str, ...], **head: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _check_folder(source)
    local = _hub_unreachable()  # the Hub's client would retry for most of a minute
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source,
                output_loading_info=True,
                dtype=torch.float32,
                local_files_only=local,
                **head,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        raise CheckpointError(_cannot_load(source, problem)) from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(optional or "\0"))
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights of a {type(model).__name__}, among them "
            f"{missing[0]}. Fine-tune it first: quantkit finetune --model {source}"
        )
    check_finite(model)
    return model, tokenizer


def _check_folder(source: str) -> None:
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
            raise CheckpointError(
                f"{source}: no such folder. --model takes a folder or a Hub name."
            )
        return
    if (folder / "quantkit.json").is_file():
        raise CheckpointError(
            f"{source} is a quantized checkpoint; a float one is needed here. "
            f"Its float model lies beside it if quantkit made it (runs/NAME/float)."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{source} holds no config.json: it is not a model folder.")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise CheckpointError(f"{source} holds no weights ({' or '.join(_WEIGHTS[:2])}).")


def _hub_unreachable() -> bool:
    """Whether the Hub's address cannot even be looked up; a proxy does that by itself."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _cannot_load(source: str, problem: Exception) -> str:
    """What went wrong, and the ways out, which differ for a folder and a Hub name."""
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
    if Path(source).is_dir():
        return f"{source} cannot be loaded as a sequence classifier: {reason}"
    return (
        f"The model {source!r} is neither a folder nor in the local Hugging Face cache, and it "
        f"could not be downloaded ({reason}). Ways out:\n"
        f"  - with a network: check the name on the Hub; a private model needs `hf auth login`\n"
        f"  - on another machine: hf download {source} --local-dir FOLDER, copy FOLDER here and "
        f"pass --model FOLDER\n"
        f"  - without a network: quantkit run builtin.yaml uses the built-in data and model"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading report: what matters in it is checked above."""
    logging: Any = hf_logging  # its functions are not typed
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
