"""The word-level tokenizer of the recurrent baselines."""

import os
import subprocess
import sys

from quantkit.data.vocabulary import train_vocabulary

TEXTS = ["Enak, ENAK sekali!", "tidak enak\tsekali", "bagus-bagus saja; se_lalu", "nggak's"]


def test_words_are_numbered_by_frequency_then_alphabet() -> None:
    ids = train_vocabulary(TEXTS, 100).get_vocab()
    assert sorted(ids, key=lambda word: ids[word]) == [
        *("[PAD]", "[UNK]", "enak", "bagus", "sekali"),
        *("lalu", "nggak's", "saja", "se", "tidak"),
    ]


def test_the_least_frequent_words_are_unknown() -> None:
    words = train_vocabulary(TEXTS, 5)
    assert len(words) == 5
    assert words("Enak sekali SAJA")["input_ids"] == [2, 4, 1]
    assert (words.pad_token_id, words.unk_token_id) == (0, 1)


def test_the_filter_is_that_of_keras() -> None:
    filters = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
    words = train_vocabulary(TEXTS, 100)
    for character in filters:
        assert words(f"enak{character}saja")["input_ids"] == words("enak saja")["input_ids"]
    assert words("nggak's")["input_ids"] == [words.get_vocab()["nggak's"]]


def test_same_vocabulary_in_another_process() -> None:
    program = (
        "import sys; from quantkit.data.vocabulary import train_vocabulary; "
        "print(sorted(train_vocabulary(sys.argv[1:], 8).get_vocab().items()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, *TEXTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert answer.stdout.strip() == str(sorted(train_vocabulary(TEXTS, 8).get_vocab().items()))
