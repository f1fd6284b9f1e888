"""A word-level tokenizer of a dataset's own texts, as Keras' `Tokenizer` makes it."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["PAD", "UNKNOWN", "train_vocabulary"]

PAD, UNKNOWN = "[PAD]", "[UNK]"  # ids 0 and 1

# What Keras' `Tokenizer` takes for a space, by default. The apostrophe is not among it.
FILTERED = r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\t\n]"""


def train_vocabulary(texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """Number the words of the train split, so that validation and test texts stay unseen.

    The most frequent word has id 2; equally frequent words stand in alphabetical order, so
    the same texts give the same ids in every run. `size` counts the two special tokens;
    fewer words may give fewer ids. Nothing is put before or behind a text, and a text
    without words has no tokens.
    """
    backend = _backend({PAD: 0, UNKNOWN: 1})
    counts = Counter(word for text in texts for word in _words(backend, text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = [PAD, UNKNOWN, *ranked[: max(0, size - 2)]]
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_backend({word: at for at, word in enumerate(words)}),
        pad_token=PAD,
        unk_token=UNKNOWN,
    )
    return tokenizer


def _backend(ids: dict[str, int]) -> Tokenizer:
    backend = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    backend.normalizer = Sequence([Lowercase(), Replace(Regex(FILTERED), " ")])
    backend.pre_tokenizer = WhitespaceSplit()
    return backend


def _words(backend: Tokenizer, text: str) -> list[str]:
    """The words of a text as the tokenizer itself sees them."""
    normal = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
