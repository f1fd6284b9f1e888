"""A vocabulary trimmed to a corpus: fewer rows, the same answers to its texts, the cost stated."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import quantkit
from quantkit.checkpoint import reachable_rows, save_float
from quantkit.data.vocabulary import train_vocabulary
from quantkit.errors import CheckpointError
from quantkit.packed import load_packed
from quantkit.pipeline import ptq_checkpoint
from quantkit.recipe import Recipe
from quantkit.slots import Calibration, Embeddings
from quantkit.tokenization import Inputs
from quantkit.trim import Coverage, Trimmed, trim_to_corpus
from quantkit.trim.corpus import Change, change, count_same_tokens
from quantkit.trim.pieces import pieces_of
from tests.models import small_model
from tests.small_tokenizers import TOKENIZERS, texts, wordpiece

CORPUS, OTHERS = texts()[:40], texts()[400:440]
Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module", params=TOKENIZERS)
def whole(request: pytest.FixtureRequest) -> Pair:
    tokenizer = TOKENIZERS[request.param]()
    return small_model(request.param, vocab_size=len(tokenizer) + 9), tokenizer


@pytest.fixture(scope="module")
def trimmed(whole: Pair) -> Trimmed:
    return trim_to_corpus(*whole, Inputs(CORPUS), held_out=Inputs(OTHERS))


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: Sequence[str]) -> list[list[str]]:
    return [tokenizer.tokenize(row) for row in rows]


def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[str]
) -> torch.Tensor:
    batch = tokenizer(list(rows), padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits


def _table(model: PreTrainedModel) -> torch.Tensor:
    words: Any = model.get_input_embeddings()
    table: torch.Tensor = words.weight
    return table


def _wrapped(vocabulary: dict[str, int], **special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def test_texts_of_the_corpus_keep_their_tokens_and_logits(whole: Pair, trimmed: Trimmed) -> None:
    model, tokenizer = whole
    assert trimmed.coverage.rows_after < 0.9 * reachable_rows(tokenizer)
    assert _tokens(trimmed.tokenizer, CORPUS) == _tokens(tokenizer, CORPUS)
    assert torch.equal(
        _logits(trimmed.model, trimmed.tokenizer, CORPUS), _logits(model, tokenizer, CORPUS)
    )


def test_every_row_is_the_row_of_the_same_token(whole: Pair, trimmed: Trimmed) -> None:
    model, tokenizer = whole
    before, after = (_table(each) for each in (model, trimmed.model))
    ids = trimmed.tokenizer.get_vocab()
    assert sorted(ids.values()) == list(range(len(after)))
    assert len(after) == trimmed.model.config.vocab_size == trimmed.coverage.rows_after
    for token, number in ids.items():
        assert torch.equal(after[number], before[tokenizer.convert_tokens_to_ids(token)])


def test_what_came_in_stays_as_it_is(whole: Pair, trimmed: Trimmed) -> None:
    model, tokenizer = whole
    assert model.config.vocab_size == len(_table(model))
    assert len(tokenizer) == trimmed.coverage.reachable
    assert type(trimmed.tokenizer) is type(tokenizer)
    assert trimmed.tokenizer.model_max_length == tokenizer.model_max_length
    assert trimmed.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    kept = dict(trimmed.model.named_parameters())
    same = [name for name, tensor in model.named_parameters() if kept[name] is tensor]
    assert len(same) == len(kept) - 1  # all but the word table, in the same memory


def test_unseen_words_are_split_and_not_unknown(whole: Pair, trimmed: Trimmed) -> None:
    before, after = (_tokens(t, OTHERS) for t in (whole[1], trimmed.tokenizer))
    assert after != before
    for now, then in zip(after, before, strict=True):
        assert trimmed.tokenizer.unk_token not in now
        assert _joined(now) == _joined(then)


def _joined(tokens: Sequence[str]) -> str:
    return "".join(token.removeprefix("##") for token in tokens)


def test_a_saved_tokenizer_is_the_same(trimmed: Trimmed, tmp_path: Path) -> None:
    trimmed.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for row in [*CORPUS, *OTHERS]:
        ids = trimmed.tokenizer(row, "satu lagi")["input_ids"]
        assert loaded(row, "satu lagi")["input_ids"] == ids == alone.encode(row, "satu lagi").ids


def test_coverage_is_what_the_tokenizers_say(whole: Pair, trimmed: Trimmed) -> None:
    model, tokenizer = whole
    found = trimmed.coverage
    assert (found.rows_before, found.reachable) == (model.config.vocab_size, len(tokenizer))
    assert (found.texts, found.validation) == (len(CORPUS), True)
    assert found.tokens == sum(map(len, _tokens(tokenizer, CORPUS)))
    held = found.held_out
    assert held is not None
    assert held.texts == len(OTHERS)
    assert 0.2 < held.same < 0.9
    assert held.unknown == (0.0, 0.0)
    before, after = (sum(map(len, _tokens(t, OTHERS))) for t in (tokenizer, trimmed.tokenizer))
    assert held.pieces[1] / held.pieces[0] == pytest.approx(after / before)


def test_a_packed_folder_answers_as_the_torch_model(whole: Pair, tmp_path: Path) -> None:
    model, tokenizer = whole
    save_float(model, tokenizer, tmp_path / "float")
    recipe = Recipe(
        name="t", task="none", model="none", calibration=Calibration(32),
        embeddings=Embeddings(trim="corpus"), max_length=40,
    )  # fmt: skip
    made = ptq_checkpoint(
        recipe, tmp_path / "float", Inputs(CORPUS), tmp_path / "w8a8", held_out=Inputs(OTHERS)
    )
    packed, session = load_packed(tmp_path / "w8a8"), quantkit.load(tmp_path / "w8a8")
    rows = packed.model.config.vocab_size
    assert session.vocabulary == len(packed.tokenizer) == rows < 0.9 * len(tokenizer)
    assert made.quantized.trimmed_rows == model.config.vocab_size - rows
    assert json.loads((tmp_path / "w8a8" / "quantkit.json").read_text())["notes"] == list(
        made.quantized.notes
    )
    assert f"{rows:,} of {len(tokenizer):,} word rows" in made.quantized.notes[-1]
    for each in (CORPUS, OTHERS):
        expected = _logits(packed.model, packed.tokenizer, each).numpy()
        assert np.abs(session.logits(each) - expected).max() < 0.05  # rounding flips
        assert [session.labels[at] for at in expected.argmax(1)] == [
            answer.label for answer in session.predict(each)
        ]


# In a process of its own: importing quantkit.hf changes what transformers loads.
PROGRAM = """
import sys, torch, transformers
import quantkit.hf
from quantkit.packed import load_packed

model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
batch = transformers.AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2], return_tensors="pt")
with torch.no_grad():
    assert torch.equal(model(**batch).logits, load_packed(sys.argv[1]).model(**batch).logits)
print(model.config.vocab_size)
"""


@pytest.mark.skipif(transformers.__version__ < "5", reason="needs transformers 5")
def test_transformers_loads_a_trimmed_folder(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    save_float(small_model("Bert", vocab_size=len(tokenizer)), tokenizer, tmp_path / "float")
    recipe = Recipe("t", "none", "none", embeddings=Embeddings(trim="corpus"), max_length=40)
    made = ptq_checkpoint(recipe, tmp_path / "float", Inputs(CORPUS), tmp_path / "w8a8")
    command = [sys.executable, "-c", PROGRAM, str(made.folder), OTHERS[0]]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert int(result.stdout) == made.quantized.model.config.vocab_size < len(tokenizer)


def test_special_ids_are_renumbered_everywhere() -> None:
    """Here they have the last ids, and the padding is also set in the tokenizer's own file."""
    words = ["a", "b", "##a", "##b", "aa", "ab", "bb", "##ab", "##bb"]
    vocabulary = _numbered(*words, "[SEP]", "[UNK]", "[PAD]", "[CLS]")
    tokenizer = _wrapped(vocabulary, sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]")
    tokenizer.add_tokens(["<dan>"])
    backend: Any = tokenizer.backend_tokenizer
    ends = processors.BertProcessing(("[SEP]", 9), ("[CLS]", 12))
    backend.post_processor = processors.Sequence([processors.ByteLevel(), ends])
    backend.enable_padding(pad_id=11, pad_token="[PAD]")
    backend.enable_truncation(30)
    model = small_model(
        "Bert", vocab_size=20, pad_token_id=11, bos_token_id=12, eos_token_id=9, sep_token_id=17
    )
    found = trim_to_corpus(model, tokenizer, Inputs(["ab b <dan>", "aab"]))
    kept = ["a", "b", "##a", "##b", "aa", "ab", "[SEP]", "[UNK]", "[PAD]", "[CLS]", "<dan>"]
    assert found.tokenizer.get_vocab() == _numbered(*kept)
    stored = json.loads(found.tokenizer.backend_tokenizer.to_str())
    assert stored["padding"]["pad_id"] == 8
    assert stored["truncation"]["max_length"] == 30
    assert found.tokenizer("bb <dan>")["input_ids"] == [9, 1, 3, 10, 6]
    assert found.tokenizer.pad_token_id == 8
    config = found.model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (8, 9, 6)
    assert config.sep_token_id is None  # it was no token's
    assert found.model.get_input_embeddings().padding_idx == 8
    rows = ["ab b", "aab ab <dan> b"]
    assert torch.equal(_logits(found.model, found.tokenizer, rows), _logits(model, tokenizer, rows))


def test_ids_up_to_roberta_s_padding_stay() -> None:
    """Positions are counted from it, so it must keep its number."""
    tokens = ["[CLS]", "a", "b", "ab", "ba", "[PAD]", "##a", "##b", "bb", "##ab", "##bb", "[UNK]"]
    tokenizer = _wrapped(_numbered(*tokens), pad_token="[PAD]", cls_token="[CLS]")
    model = small_model("Roberta", vocab_size=12, pad_token_id=5)
    found = trim_to_corpus(model, tokenizer, Inputs(["ab bb"]))
    kept = [*tokens[:6], "##a", "##b", "bb", "[UNK]"]
    assert found.tokenizer.get_vocab() == _numbered(*kept)
    rows = ["ab bb", "ab"]
    assert torch.equal(_logits(found.model, found.tokenizer, rows), _logits(model, tokenizer, rows))


def test_a_word_that_was_unknown_stays_so() -> None:
    """`abcd` ends behind `abc`; without that piece it would begin with `ab`, and find `##cd`."""
    tokens = ["[UNK]", "a", "b", "c", "##a", "##b", "##c", "ab", "abc", "##cd", "[PAD]"]
    tokenizer = _wrapped(_numbered(*tokens), pad_token="[PAD]")
    backend: Any = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    model = small_model("Bert", vocab_size=11)
    rows = ["ABCD", "ab acd"]
    assert _tokens(tokenizer, rows) == [["[UNK]"], ["ab", "a", "##cd"]]
    found = trim_to_corpus(model, tokenizer, Inputs(rows))
    assert _tokens(found.tokenizer, rows) == _tokens(tokenizer, rows)


def test_the_score_of_an_unknown_character_stays() -> None:
    """It is counted from the least score of all pieces, here that of `qq`.

    With it `xab` is xa + b (-100), not unknown + ab (-111); without it, unknown + ab (-61).
    """
    pieces = {"<unk>": 0.0, "a": -50.0, "b": -50.0, "xa": -50.0, "ab": -1.0, "qq": -100.0}
    backend = Tokenizer(models.Unigram([*pieces.items(), ("bb", -2.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    found = trim_to_corpus(small_model("Bert", vocab_size=7), tokenizer, Inputs(["xab", "ab"]))
    assert found.tokenizer.get_vocab() == _numbered(*pieces)
    assert _tokens(found.tokenizer, ["xab"]) == _tokens(tokenizer, ["xab"]) == [["xa", "b"]]


def test_merged_tokens_need_their_parts() -> None:
    """`abc</w>` is made of `ab`, which is in no text; older files write a merge as one string."""
    tokens = ["<unk>", "a", "b", "c</w>", "ab", "abc</w>", "bc</w>", "aa", "<0x41>", "<0x4>"]
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": _numbered(*tokens),
        "merges": ["a b", ["ab", "c</w>"], "b c</w>", "a a"],
        "end_of_word_suffix": "</w>",
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    needed = pieces_of(model).needed(model, {"abc</w>"})
    assert needed == {"<unk>", "a", "b", "c</w>", "ab", "abc</w>", "<0x41>"}
    kept = pieces_of(model).restricted(model, dict.fromkeys(needed, 10))
    assert kept["merges"] == [["a", "b"], ["ab", "c</w>"]]
    assert kept["vocab"].keys() == needed


def test_ids_that_the_library_would_give_otherwise_are_refused() -> None:
    """An added token takes the vocabulary's size as id, which after the hole closes is b's."""
    tokenizer = _wrapped({"[UNK]": 0, "a": 1, "b": 5})
    tokenizer.add_tokens(["<dan>"])
    assert tokenizer.get_vocab()["<dan>"] == 3
    with pytest.raises(CheckpointError, match="cannot be numbered anew: of 4 tokens"):
        trim_to_corpus(small_model("Bert", vocab_size=6), tokenizer, Inputs(["a"]))


def test_a_text_that_is_split_otherwise_is_named() -> None:
    before = _wrapped(_numbered("[UNK]", "a", "##b", "ab")).backend_tokenizer
    after = _wrapped(_numbered("[UNK]", "a", "##b")).backend_tokenizer
    with pytest.raises(CheckpointError, match=r"training row 2 \('ab'\) is split"):
        count_same_tokens(before, after, range(3), Inputs(["a", "ab"]), words=False)


def test_both_texts_of_pairs_and_lists_of_words_are_read() -> None:
    tokenizer = wordpiece()
    first, second = CORPUS[:5], OTHERS[:5]
    pair = trim_to_corpus(
        small_model("Bert", vocab_size=len(tokenizer)), tokenizer, Inputs(first, second)
    )
    both = [*first, *second]
    assert _tokens(pair.tokenizer, both) == _tokens(tokenizer, both)
    labeller = small_model("Bert", "ForTokenClassification", vocab_size=len(tokenizer))
    words = trim_to_corpus(labeller, tokenizer, Inputs([row.split() for row in both]))
    assert words.tokenizer.get_vocab() == pair.tokenizer.get_vocab()


def test_without_other_texts_a_tenth_is_held_out() -> None:
    """Of 40 texts the tenth, the twentieth, ... by a vocabulary of the other 36."""
    tokenizer = wordpiece()
    model = small_model("Bert", vocab_size=len(tokenizer))
    found = trim_to_corpus(model, tokenizer, Inputs(CORPUS)).coverage
    rest = [row for number, row in enumerate(CORPUS) if number % 10 != 9]
    expected = trim_to_corpus(model, tokenizer, Inputs(rest), held_out=Inputs(CORPUS[9::10]))
    assert found.held_out == expected.coverage.held_out
    assert not found.validation
    few = trim_to_corpus(model, tokenizer, Inputs(CORPUS[:9])).coverage
    assert few.held_out is None
    assert "too few texts" in few.note(torch.nn.Embedding(few.rows_after, 4))


def test_a_change_counted_by_hand() -> None:
    tokens = ["[UNK]", "a", "b", "##a", "##b", "ab", "##ba"]
    before = _wrapped(_numbered(*tokens)).backend_tokenizer
    after = _wrapped(_numbered(*tokens[:5])).backend_tokenizer
    # ab -> a ##b; a ##ba -> a ##b ##a; the others stay: five tokens become eight of five words.
    found = change(before, after, range(5), Inputs(["ab aba b", "a x"]), words=False)
    assert found == Change(2, same=3 / 6, unknown=(1 / 6, 1 / 8), pieces=(6 / 5, 8 / 5))


def test_the_note_says_what_is_saved() -> None:
    held_out = Change(99, 0.975, (0.0, 0.01), (1.2, 1.3))
    coverage = Coverage(50_000, 30_000, 10_000, 1_234, 5_678, held_out, validation=True)
    assert coverage.note(torch.nn.Embedding(10_000, 100)) == (
        "The vocabulary is trimmed to 1,234 training texts: 10,000 of 30,000 word rows that the "
        "tokenizer reached stay (the checkpoint has 50,000), which saves 8.00 MB. All 5,678 tokens "
        "of these texts are as before. Of 99 validation texts 97.50% of the tokens are as before; "
        "unknown 0.00% before and 1.00% now; pieces a word 1.200 before and 1.300 now."
    )


def test_a_tokenizer_of_whole_words_is_refused() -> None:
    tokenizer = train_vocabulary(CORPUS, 300)
    model = small_model("Bert", vocab_size=len(tokenizer))
    with pytest.raises(CheckpointError, match=r"type WordLevel, .*WordPiece, BPE, Unigram"):
        trim_to_corpus(model, tokenizer, Inputs(CORPUS))


def test_a_model_without_rows_for_all_tokens_is_refused() -> None:
    with pytest.raises(CheckpointError, match="table has 100 rows"):
        trim_to_corpus(small_model("Bert", vocab_size=100), wordpiece(), Inputs(CORPUS))


def test_a_quantized_model_is_refused(quantized: Any, tokenizer: Any) -> None:  # noqa: ANN401
    with pytest.raises(CheckpointError, match="quantized already"):
        trim_to_corpus(quantized.model, tokenizer, Inputs(CORPUS))
