"""The command line in this process, small models, and small data in its origins' layouts.

What takes time is made once for all modules of tests, below the folder that pytest gives.
"""

import contextlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from quantkit.checkpoint import save_float
from quantkit.cli import main
from quantkit.data.tokenizer import train_wordpiece

# In the order of IndoNLU's files.
PARTS = ("train", "valid", "test")

FEELINGS = {
    "positive": ("enak", "bagus", "ramah", "puas"),
    "neutral": ("biasa", "standar", "cukup", "lumayan"),
    "negative": ("buruk", "kotor", "lambat", "kecewa"),
}
NOUNS = ("makanan", "pelayanan", "kamar", "harga", "tempat")
PEOPLE, PLACES, VERBS = ("budi", "siti", "andi"), ("jakarta", "bali"), ("tinggal", "bekerja")
ASPECTS = ("fuel", "machine", "others", "part", "price", "service")  # CASA's

TRAINING = {"finetune.lr": "3e-3", "finetune.batch_size": 16, "calibration.samples": 32}
BENCH = {"bench.rounds": 1, "bench.repeats": 1, "bench.lengths": "[8]"}


class Outcome(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


class Line(NamedTuple):
    """A run that has everything: its runs folder, its data, its first model, what was said."""

    runs: Path
    data: Path
    checkpoint: Path
    printed: str


def invoke(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        patch.setattr(sys, "argv", ["quantkit", *map(str, arguments)])
        main()
    assert "Traceback" not in err.getvalue()
    return Outcome(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> str:
    """What a command prints that must not fail."""
    outcome = invoke(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def changes(*groups: Mapping[str, object], **values: object) -> list[str]:
    """Arguments --set; in a keyword, two underscores stand for the dot."""
    merged = {k: v for group in groups for k, v in group.items()}
    merged |= {name.replace("__", "."): value for name, value in values.items()}
    return [part for path, value in merged.items() for part in ("--set", f"{path}={value}")]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def feelings() -> list[tuple[str, str]]:
    """Texts and their sentiment, which two words of a text say, in an order without any rule."""
    rows = [
        (f"{noun} itu {a} dan {b}", label)
        for label, words in FEELINGS.items()
        for noun, a, b in product(NOUNS, words, words)
    ]
    return random.Random(0).sample(rows, len(rows))


def sentences() -> list[list[tuple[str, str]]]:
    """Words and their tags: the person first, the place last."""
    return [
        [(who, "B-PERSON"), (verb, "O"), ("di", "O"), ("kota", "B-PLACE"), (where, "I-PLACE")]
        for who, verb, where in product(PEOPLE, VERBS, PLACES)
    ]


def write_smsa(folder: Path) -> Path:
    rows = [f"{text}\t{label}\n" for text, label in feelings()]
    parts = {"train": rows[::2], "valid": rows[1::4], "test": rows[3::4]}
    return _write(folder / "smsa_doc-sentiment-prosa", ".tsv", parts)


def write_nergrit(folder: Path) -> Path:
    rows = ["".join(f"{word}\t{tag}\n" for word, tag in row) + "\n" for row in sentences()]
    return _write(folder / "nergrit_ner-grit", ".txt", dict.fromkeys(PARTS, rows))


def write_casa(folder: Path) -> Path:
    """One aspect of each review is not neutral: the third for a place, the fifth for a price."""
    rows = [f"sentence,{','.join(ASPECTS)}\n"]
    for text, label in feelings()[::4]:
        at = {"harga": 4, "tempat": 2}.get(text.split()[0], 5)
        labels = ["neutral"] * 6
        labels[at] = label
        rows.append(f"{text},{','.join(labels)}\n")
    return _write(folder / "casa_absa-prosa", ".csv", dict.fromkeys(PARTS, rows))


def write_wrete(folder: Path) -> Path:
    """A pair entails if both texts are about the same noun."""
    rows = ["sent_A,sent_B,label\n"]
    for one, other in product(NOUNS, NOUNS):
        label = "Entail_or_Paraphrase" if one == other else "NotEntail"
        rows.append(f"{one} itu bagus,{other} itu ramah,{label}\n")
    return _write(folder / "wrete_entailment-ui", ".csv", dict.fromkeys(PARTS, rows))


def _write(home: Path, suffix: str, parts: Mapping[str, Iterable[str]]) -> Path:
    """The folder above the task's, as --data takes it."""
    home.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        (home / f"{part}_preprocess{suffix}").write_text("".join(rows), encoding="utf-8")
    return home.parent


def write_table(file: Path, header: str, rows: Sequence[str]) -> Path:
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


@cache
def checkpoint(
    base: Path, family: str = "Bert", layers: int = 1, head: str = "ForSequenceClassification"
) -> Path:
    """A small untrained model in a Hugging Face folder; it declares more rows than it reaches."""
    folder = base / "models" / f"{family}{head}-{layers}"
    texts = [text for text, _ in feelings()]
    texts += [" ".join(word for word, _ in row) for row in sentences()]
    tokenizer = train_wordpiece(texts, vocab_size=200)
    torch.manual_seed(0)
    narrow = {"embedding_size": 16} if family in ("Electra", "Albert") else {}
    sizes: dict[str, Any] = dict(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.15,  # wide enough that a few steps teach it something
        **narrow,
    )
    config = getattr(transformers, f"{family}Config")(**sizes)
    save_float(getattr(transformers, f"{family}{head}")(config), tokenizer, folder)
    return folder


WRITERS = {"nergrit": write_nergrit, "casa": write_casa, "wrete": write_wrete}
FAMILIES = {"casa": "Electra"}  # whose word table is narrower than its layers


@cache
def quantized(base: Path, task: str) -> Line:
    """A fine-tuned and quantized run of one of `WRITERS`' tasks, not measured."""
    runs, model = base / "lines", checkpoint(base, FAMILIES.get(task, "Bert"))
    data = WRITERS[task](base / "data")
    values = changes(TRAINING, BENCH, finetune__epochs=12)
    places = ["--data", data, "--runs", runs, *values]
    printed = succeed("finetune", f"{task}.yaml", "--model", model, *places)
    return Line(runs, data, model, printed + succeed("ptq", task, "--runs", runs))


@cache
def finished(base: Path) -> Line:
    """SmSA's whole line by one command, run once in a process of its own."""
    data, model, runs = write_smsa(base / "data"), checkpoint(base), base / "runs"
    command = ["run", "smsa.yaml", "--model", model, "--data", data, "--runs", runs]
    values = changes(TRAINING, BENCH, finetune__epochs=6, bench__rounds=2, bench__repeats=2)
    result = subprocess.run(
        [sys.executable, "-m", "quantkit", *map(str, command), *values],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return Line(runs, data, model, result.stdout)
