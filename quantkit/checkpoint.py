"""Float checkpoints: any Hugging Face model by name or folder, and the built-in small BERT."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quantkit.errors import CheckpointError
from quantkit.heads import HEAD_KEY, Head
from quantkit.hub import cannot_load, check_folder, hub_unreachable, quiet
from quantkit.ptq import check_finite
from quantkit.tokenizer_files import save_tokenizer

__all__ = [
    "builtin_model",
    "head_settings",
    "label_names",
    "labels_words",
    "length_limit",
    "load_float",
    "load_for_training",
    "padding_of",
    "reachable_rows",
    "save_float",
    "takes_token_types",
    "untrained",
]

_WORDS = "ForTokenClassification"
_HEADS = ("ForSequenceClassification", _WORDS)
_PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


def load_for_training(source: str, head: Head) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder with a fresh head, and its tokenizer.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        head: what the model is to answer; it is recorded in the model's configuration.

    Raises:
        CheckpointError: not found, offline without a cache, incomplete, or NaN weights.
    """
    model, tokenizer, missing = _load(
        source, _class_for(head), head_settings(head), words=head.kind == "words"
    )
    # The parts outside the encoder, and the pooler, are trained with the task.
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = [name for name in missing if name.startswith(inside) and ".pooler." not in f".{name}"]
    _refuse_missing(source, model, lost, "Its files are incomplete, or not all of one model.")
    return model, tokenizer


def load_float(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned float model and its tokenizer; every weight must be in the file.

    The checkpoint's own architecture says which class it is: a sequence classifier, a word
    labeller, or a bare encoder, which is a model of features.

    Raises:
        CheckpointError: as `load_for_training`, or a head that is missing or of another kind.
    """
    config = _config(str(source))
    kind = _class_of(config)
    _refuse_other_heads(str(source), config)
    words = kind is AutoModelForTokenClassification
    model, tokenizer, missing = _load(str(source), kind, {}, words=words)
    # Features are a mean over tokens: the pooler that a bare encoder also has is not used.
    unused = ".pooler." if kind is AutoModel else "\0"
    lost = [name for name in missing if unused not in f".{name}"]
    advice = f"Fine-tune it first: quantkit finetune --model {source}"
    _refuse_missing(str(source), model, lost, advice)
    return model, tokenizer


def untrained(source: str) -> PreTrainedModel:
    """A sequence classifier by a checkpoint's configuration, on the `meta` device: only shapes.

    Raises:
        CheckpointError: the configuration cannot be read.
    """
    config = _config(source)
    kind: Any = AutoModelForSequenceClassification  # its methods are not typed
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config)
    return model


def labels_words(source: str | Path) -> bool:
    """Whether a checkpoint is a word labeller's.

    Raises:
        CheckpointError: it has no configuration that can be read.
    """
    return _class_of(_config(str(source))) is AutoModelForTokenClassification


def head_settings(head: Head) -> dict[str, Any]:
    """What a configuration says of a head: its outputs' names, its problem, itself."""
    names = head.output_names
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": _PROBLEMS.get(head.kind),
        HEAD_KEY: head.to_json(),
    }


def save_float(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer's files into `folder`."""
    with quiet():
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)


def builtin_model(tokenizer: PreTrainedTokenizerBase, head: Head) -> PreTrainedModel:
    """An untrained BERT of 4 layers x 256: the stand-in for IndoBERT that needs no network."""
    sizes: dict[str, Any] = dict(
        vocab_size=reachable_rows(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        **head_settings(head),
    )
    return BertForSequenceClassification(BertConfig(**sizes))


def reachable_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest token id that the tokenizer can produce, plus one.

    IndoBERT-base declares 50,000 rows; its tokenizer reaches 30,521 of them.
    """
    return max(tokenizer.get_vocab().values()) + 1


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the padding token; 0 where there is none."""
    return int(tokenizer.pad_token_id or 0)


def label_names(model: PreTrainedModel) -> list[str]:
    """The classes of a classifier, in the order of their ids."""
    names: Mapping[Any, str] = model.config.id2label or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def length_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requested: int | None
) -> int:
    """Tokens a text may have: the least of the request, the position table and the tokenizer.

    IndoBERT's tokenizer says 1e30, so the position table decides. RoBERTa's positions begin
    behind its padding id: of 514 rows 512 can be reached.
    """
    config = model.config
    positions = int(config.max_position_embeddings)
    if config.model_type in ("roberta", "xlm-roberta"):
        positions -= int(config.pad_token_id) + 1
    limits = [positions, int(tokenizer.model_max_length)]
    return min(limits if requested is None else [*limits, requested])


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether token types mean something to the model: it has more than one."""
    known = "token_type_ids" in inspect.signature(model.forward).parameters
    return known and int(getattr(model.config, "type_vocab_size", 0)) > 1


def _load(
    source: str,
    kind: Any,  # noqa: ANN401
    settings: Mapping[str, Any],
    *,
    words: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """The model, its tokenizer, and the names of weights that the files lack.

    `settings` change the configuration; weights of another shape than it asks for are fresh,
    and lacking.
    """
    config = _config(source)
    for name, value in settings.items():
        setattr(config, name, value)
    # Byte-level tokenizers split sentences of words right only with a space before each word.
    spaced = {"add_prefix_space": True} if words and config.model_type == "roberta" else {}
    local = hub_unreachable(source)  # the Hub's client would retry for most of a minute
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, **spaced)
            model, info = kind.from_pretrained(
                source,
                config=config,
                output_loading_info=True,
                dtype=torch.float32,
                local_files_only=local,
                ignore_mismatched_sizes=bool(settings),
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as problem:
        raise CheckpointError(cannot_load(source, problem)) from None
    check_finite(model)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty one
        raise CheckpointError(f"{source} holds no tokenizer. Copy its tokenizer.json there too.")
    # transformers 4 lists names, transformers 5 names with both shapes.
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return model, tokenizer, sorted(mismatched.union(info["missing_keys"]))


def _config(source: str) -> PretrainedConfig:
    check_folder(source)
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                source, local_files_only=hub_unreachable(source)
            )
    except (OSError, ValueError, KeyError) as problem:
        raise CheckpointError(cannot_load(source, problem)) from None
    return config


def _class_for(head: Head) -> Any:  # noqa: ANN401
    classes = {"words": AutoModelForTokenClassification, "features": AutoModel}
    return classes.get(head.kind, AutoModelForSequenceClassification)


def _architecture(config: PretrainedConfig) -> str:
    """The class that a checkpoint says it is; empty if it says none."""
    return (config.architectures or [""])[0]


def _class_of(config: PretrainedConfig) -> Any:  # noqa: ANN401
    """The auto class of a checkpoint's architecture; a sequence classifier's if it says none."""
    name = _architecture(config)
    if name.endswith(_WORDS):
        return AutoModelForTokenClassification
    return AutoModel if name.endswith("Model") else AutoModelForSequenceClassification


def _refuse_other_heads(source: str, config: PretrainedConfig) -> None:
    """Refuse a head that would be replaced by an untrained one, before shapes disagree."""
    name = _architecture(config)
    if "For" in name and not name.endswith(_HEADS):
        raise CheckpointError(
            f"{source} is a {name}; quantkit quantizes classifiers of texts, classifiers of words, "
            f"and bare encoders. Fine-tune its encoder first: quantkit finetune --model {source}"
        )


def _refuse_missing(source: str, model: PreTrainedModel, names: list[str], advice: str) -> None:
    if names:
        raise CheckpointError(
            f"{source} lacks {len(names)} weights of a {type(model).__name__}, among them "
            f"{names[0]}. {advice}"
        )
