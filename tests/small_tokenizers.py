"""Small tokenizers of the kinds that published checkpoints have, trained on a few words."""

from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (  # type: ignore[attr-defined]  # the type stubs lack the last one
    PreTrainedTokenizerBase,
    RobertaTokenizerFast,
    XLMRobertaTokenizerFast,
)

from quantkit.data.builtin import load_builtin
from quantkit.data.tokenizer import train_wordpiece

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # RoBERTa's first ids


@cache
def texts() -> tuple[str, ...]:
    """Generated reviews: what the tokenizers are trained on."""
    return tuple(load_builtin().splits["train"]["text"][:600])


def wordpiece() -> PreTrainedTokenizerBase:
    return train_wordpiece(texts(), vocab_size=500)


def byte_level() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL, "<mask>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=backend)


def unigram() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer: PreTrainedTokenizerBase = XLMRobertaTokenizerFast(tokenizer_object=backend)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "Bert": wordpiece,
    "Roberta": byte_level,
    "XLMRoberta": unigram,
}
