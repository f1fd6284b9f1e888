"""A lower-cased BERT WordPiece tokenizer trained on a dataset's own texts."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import (  # type: ignore[attr-defined]  # the type stubs lack the first one
    BertTokenizerFast,
    PreTrainedTokenizerBase,
)

__all__ = ["SPECIAL_TOKENS", "train_wordpiece"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4


def train_wordpiece(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerBase:
    """Train on the train split only, so that validation and test texts stay unseen.

    The same texts give the same ids in every run. `vocab_size` counts the special tokens
    and the single characters, of which none is left out; fewer texts may give fewer tokens.
    """
    texts = list(texts)
    backend = _untrained()
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *_continuations(backend, texts)],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # A fresh backend, because training also registers its special tokens as whole words.
    return _wrap(_untrained(backend.get_vocab(with_added_tokens=False)))


def _untrained(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    ids = vocabulary or {token: at for at, token in enumerate(SPECIAL_TOKENS)}
    backend = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer(lowercase=True)
    backend.pre_tokenizer = BertPreTokenizer()
    return backend


def _continuations(backend: Tokenizer, texts: list[str]) -> list[str]:
    """Every `##` character of the texts, sorted.

    The trainer numbers these in the order of a randomly seeded hash map and breaks ties
    between merges by those numbers (huggingface/tokenizers issue 1794), so that its
    vocabulary changes from run to run. Handed over as special tokens they come first and
    in this order, and nothing random is left.
    """
    found: set[str] = set()
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(text)
        ):
            found.update(word[1:])
    return [f"##{character}" for character in sorted(found)]


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerBase:
    """Add BERT's template for one and for two texts and the interface of transformers."""
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer: PreTrainedTokenizerBase = BertTokenizerFast(
        tokenizer_object=backend, do_lower_case=True
    )
    return tokenizer
