"""The tokenizer of the built-in model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from quantkit.data.tokenizer import SPECIAL_TOKENS, train_wordpiece

# Many pairs of letters are equally frequent: ties that an unordered trainer breaks anyhow.
TIES = [
    "Wel come to the Tok en izers libr ary.",
    "pelayanan ramah makanan enak",
    "bgus bgt gak nyesel, sampai habis!",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_wordpiece(TIES, vocab_size=120)


def test_special_tokens_have_the_first_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    assert tokenizer.pad_token_id == 0
    assert tokenizer.unk_token_id == 1
    assert tokenizer.cls_token_id == 2
    assert tokenizer.sep_token_id == 3
    assert tokenizer.mask_token_id == 4
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_template_of_one_text_and_of_a_pair(tokenizer: PreTrainedTokenizerBase) -> None:
    one = tokenizer("enak")["input_ids"]
    body = one[1:-1]
    assert one == [2, *body, 3]
    pair = tokenizer("enak", "enak")
    assert pair["input_ids"] == [2, *body, 3, *body, 3]
    half = len(body)
    assert pair["token_type_ids"] == [0] * (half + 2) + [1] * (half + 1)


def test_case_is_ignored_and_words_are_rebuilt(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Pelayanan RAMAH")["input_ids"]
    assert ids == tokenizer("pelayanan ramah")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "pelayanan ramah"


def test_words_of_known_letters_are_never_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    assert 1 not in tokenizer("makan ramah lama")["input_ids"]
    assert 1 in tokenizer("日本")["input_ids"]


def test_continuations_are_pieces_and_not_whole_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """The trainer gets them as special tokens; the result must not treat them as such."""
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert "##a" in tokenizer.get_vocab()
    assert "##a" not in tokenizer.tokenize("##a")


@pytest.mark.parametrize("size", [60, 90])
def test_size_is_kept(size: int) -> None:
    assert len(train_wordpiece(TIES, vocab_size=size)) == size


def test_same_vocabulary_in_every_run() -> None:
    first = train_wordpiece(TIES, vocab_size=90).get_vocab()
    for _ in range(10):
        assert train_wordpiece(TIES, vocab_size=90).get_vocab() == first


def test_same_vocabulary_in_another_process() -> None:
    program = (
        "import sys; from quantkit.data.tokenizer import train_wordpiece; "
        "print(sorted(train_wordpiece(sys.argv[1:], vocab_size=90).get_vocab().items()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, *TIES],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"},
    )
    vocabulary = train_wordpiece(TIES, vocab_size=90).get_vocab()
    assert answer.stdout.strip() == str(sorted(vocabulary.items()))


def test_saved_folder_loads_back(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in [*TIES, "Belum PERNAH dilihat 123"]:
        assert loaded(text, text)["input_ids"] == tokenizer(text, text)["input_ids"]
