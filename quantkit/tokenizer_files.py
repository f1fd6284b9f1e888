"""A tokenizer's files, which say nothing of how it happened to be called."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

__all__ = ["save_tokenizer"]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files into `folder`, without truncation and padding.

    transformers writes down those of the last call, and other programs would cut texts by them:
    after `tokenizer(text, truncation=True, max_length=64)` the files say 64 tokens.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    plain = Tokenizer.from_file(str(file))
    if plain.truncation is not None or plain.padding is not None:
        plain.no_truncation()
        plain.no_padding()
        plain.save(str(file))
