"""The built-in dataset: generated Indonesian sentences with a sentiment.

It needs no download, so that the whole line from training to measurement runs anywhere.
The labels follow from the language alone and none is flipped: difficulty comes from
negation, contrast, words whose worth depends on the noun, neutral texts that use the same
words, chat spellings, typos, and words that the train split does not have.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from quantkit.data import lexicon
from quantkit.data.lexicon import Polar, Topic
from quantkit.data.schema import Example, TaskData, build_task
from quantkit.heads import Head

__all__ = ["LABELS", "SEED", "SIZES", "load_builtin"]

LABELS = ("positive", "neutral", "negative")  # SmSA's order
SIZES = {"train": 6000, "validation": 800, "test": 1000}  # texts
SEED = 20240601
NOTE = "built-in generated data: a stand-in for real Indonesian text"

LABEL_SHARES = (("positive", 0.40), ("neutral", 0.25), ("negative", 0.35))
RARE_WORD_SHARE = 0.03  # of the sentiment words outside train
RARE_NOUN_SHARE = 0.10  # of the nouns outside train
ORDINARY = 5  # the first words of a list are the ordinary ones
SKEW = 3.5  # 1: all words of a list equally often; more: the first ones more often
CASUAL_SHARE = 0.45  # of the texts
TYPO_SHARE = 0.015  # of the words longer than 4 letters
DRAWN_OUT_SHARE = 0.02  # of the words longer than 3 letters in casual texts

_Option = TypeVar("_Option")
Weighted = tuple[tuple[tuple[str, ...], float], ...]  # (templates, share)
Domain = tuple[Topic, ...]

# {same} carries the text's sentiment, {other} the opposite one.
PLAIN = (
    "{noun} {same}",
    "{noun} {same} {after}",
    "{noun} {before} {same}",
    "{noun}nya {same}",
    "{noun} di {place} {same}",
    "{noun} ini {same} {after}",
    "{same} {after} {noun}nya",
    "{noun} {same} dan {same}",
    "{phrase}",
    "makin lama {noun} makin {same}",
    "saya {mood} dengan {noun}nya",
    "saya {mood} {after} sama {noun} di {place}",
)
NEGATED = (
    "{noun} tidak {other}",
    "{noun}nya tidak {other}",
    "{noun} di {place} tidak {other}",
    "{noun} sama sekali tidak {other}",
    "{noun} tidak {other} sama sekali",
    "tidak ada {noun} yang {other} di {place}",
    "{noun} tidak pernah {other}",
    "bukan {noun} yang {other}",
    "saya tidak {othermood} dengan {noun}nya",
    "saya tidak pernah {othermood} ke {place}",
)
GOOD_ONLY = (
    "{noun} bukan main {same}nya",
    "belum ada {noun} yang lebih {same}",
    "tidak perlu khawatir {noun}nya {same}",
    "{noun} jauh dari {other}",
)
BAD_ONLY = (
    "{noun} kurang {other}",
    "{noun} tidak terlalu {other}",
    "{noun} terlalu {same}",
    "{noun} belum {other}",
    "apanya yang {other} dari {noun} ini",
    "andai {noun}nya {other} saya mau ke sini lagi",
    "{noun} jauh dari {other}",
)
REVERSED = (
    "katanya {noun} {other} , ternyata {same}",
    "dulu {noun} {other} , sekarang {same}",
    "kirain {noun} {other} , eh {same} {after}",
    "siapa bilang {noun}nya {other}",
    "awalnya {noun} {other} , lama-lama {same}",
    "{noun} yang tadinya {other} sekarang {same}",
)
CONTRAST = (
    "{opposed} tapi {agreeing}",
    "{opposed} , namun {agreeing}",
    "walaupun {opposed} , {agreeing}",
    "meskipun {opposed} tetap saja {agreeing}",
    "{agreeing} walaupun {opposed}",
)
AGREEMENT = (
    "{agreeing} , {second}",
    "{agreeing} dan {second}",
    "{agreeing} , {second} juga",
    "{agreeing} , {verdict}",
    "{verdict} , {agreeing}",
)
GOOD_CLAUSES: Weighted = ((PLAIN, 0.86), (NEGATED, 0.08), (GOOD_ONLY, 0.03), (REVERSED, 0.03))
BAD_CLAUSES: Weighted = ((PLAIN, 0.86), (NEGATED, 0.08), (BAD_ONLY, 0.03), (REVERSED, 0.03))
FRAMES: Weighted = ((("{agreeing}",), 0.34), (AGREEMENT, 0.58), (CONTRAST, 0.08))

QUESTIONS = (
    "apakah {noun} di {place} {any} ?",
    "ada yang tahu {noun} di {place} {good} atau {bad} ?",
    "kalau {noun}nya {any} tolong kabari hari {day}",
    "belum tahu {noun}nya {good} atau tidak , belum coba",
    "saya belum pernah coba {noun} di {place}",
    "bagaimana bedanya {noun} yang {good} dan yang {bad} ?",
    "saya cari {noun} yang {good} di {place} , ada ?",
    "teman saya tanya {noun} di {place} {any} atau tidak",
    "berita soal {noun} {any} itu belum jelas benar atau tidak",
    "survei {noun} {any} atau tidak dimulai hari {day}",
    "mau cari {noun} , lebih baik di {place} atau di tempat lain ?",
)
MIDDLING = (
    "{noun} tidak {good} tapi tidak {bad} juga",
    "{noun}nya biasa saja , standar",
    "{noun} dibilang {good} tidak , dibilang {bad} juga tidak",
    "{noun} sama saja seperti di {place}",
)


def load_builtin() -> TaskData:
    """Generate the dataset, the same in every run and on every platform (below 1 s)."""
    seen: set[str] = set()
    rows = {split: _generate(split, size, seen) for split, size in SIZES.items()}
    sources = {split: f"built-in data ({split})" for split in SIZES}
    head = Head("classification", LABELS)
    return build_task("builtin", head, rows, sources, notes=(NOTE,))


def _generate(split: str, size: int, seen: set[str]) -> list[Example]:
    """`size` rows with texts that are not in `seen`, which takes them up."""
    writer = _Writer(SEED + list(SIZES).index(split), rare=split != "train")
    rows: list[Example] = []
    while len(rows) < size:
        label = writer.label()
        text = writer.text(label)
        if text not in seen:
            seen.add(text)
            rows.append(Example(f"built-in data ({split}):{len(rows) + 1}", text, label))
    return rows


class _Writer:
    """Draws sentences. With `rare`, the words that are kept out of train may occur."""

    def __init__(self, seed: int, *, rare: bool) -> None:
        self._random = random.Random(seed)
        self._rare = rare

    def label(self) -> str:
        return self._weighted(LABEL_SHARES)

    def text(self, label: str) -> str:
        casual = self._chance(CASUAL_SHARE)
        body = self._neutral() if label == "neutral" else self._opinion(label, casual)
        if self._chance(0.25):
            body = f"{self._pick(lexicon.OPENERS)} {body}"
        if self._chance(0.2):
            body = f"{body} {self._pick(lexicon.CLOSERS)}"
        return " ".join(self._spell(word, casual) for word in body.split())

    def _opinion(self, label: str, casual: bool) -> str:
        good = label == "positive"
        domain = self._pick(lexicon.DOMAINS)
        frames = self._weighted(FRAMES)
        # Inside a contrast a clause is plain: the reader has one thing to resolve, not two.
        kinds = ((PLAIN, 1.0),) if frames is CONTRAST else GOOD_CLAUSES if good else BAD_CLAUSES
        body = self._common(frames).format(
            agreeing=self._clause(kinds, domain, good, casual),
            second=self._clause(kinds, domain, good, casual),
            opposed=self._clause(kinds, domain, not good, casual),
            verdict=self._polar(lexicon.VERDICTS, good),
        )
        if self._chance(0.2):
            setting = self._pick(lexicon.SETTINGS).format(**self._circumstances())
            body = f"{setting} , {body}"
        return body

    def _clause(self, kinds: Weighted, domain: Domain, good: bool, casual: bool) -> str:
        topic = self._pick(domain)
        template = self._common(self._weighted(kinds))
        first, second = self._adjective(topic, good), self._adjective(topic, good)
        template = template.replace("{same}", first, 1).replace("{same}", second)
        return template.format(
            noun=self._noun(topic),
            other=self._ordinary(topic, not good),
            phrase=self._polar(topic.phrases, good),
            mood=self._polar(lexicon.MOODS, good),
            othermood=self._polar(lexicon.MOODS, not good),
            before=self._pick(lexicon.BEFORE),
            after=self._pick(lexicon.CASUAL_AFTER if casual else lexicon.FORMAL_AFTER),
            place=self._pick(lexicon.PLACES),
        )

    def _neutral(self) -> str:
        topic = self._pick(self._pick(lexicon.DOMAINS))
        good, bad = self._adjective(topic, True), self._adjective(topic, False)
        kinds = ((topic.facts, 0.35), (QUESTIONS, 0.35), (MIDDLING, 0.15), (lexicon.SETTINGS, 0.15))
        body = self._pick(self._weighted(kinds))
        if self._chance(0.3):
            body = f"{self._pick(lexicon.SETTINGS)} , {body}"
        return body.format(
            noun=self._noun(topic),
            good=good,
            bad=bad,
            any=self._pick((good, bad)),
            **self._circumstances(),
        )

    def _circumstances(self) -> dict[str, str]:
        return {
            "place": self._pick(lexicon.PLACES),
            "day": self._pick(lexicon.DAYS),
            "hour": str(self._number(6, 22)),
            "price": str(self._number(5, 300)),
        }

    def _noun(self, topic: Topic) -> str:
        rare = self._rare and self._chance(RARE_NOUN_SHARE)
        return self._pick(topic.rare_nouns) if rare else self._common(topic.nouns)

    def _adjective(self, topic: Topic, good: bool) -> str:
        return self._polar(topic.words if self._chance(0.6) else lexicon.GENERAL, good)

    def _ordinary(self, topic: Topic, good: bool) -> str:
        """An adjective that people deny: one says "not tasty", hardly "not scrumptious"."""
        words = self._pick((topic.words, lexicon.GENERAL))
        return self._common((words.good if good else words.bad)[:ORDINARY])

    def _polar(self, words: Polar, good: bool) -> str:
        rare = words.rare_good if good else words.rare_bad
        if self._rare and rare and self._chance(RARE_WORD_SHARE):
            return self._pick(rare)
        return self._common(words.good if good else words.bad)

    def _spell(self, word: str, casual: bool) -> str:
        if casual and word in lexicon.CASUAL_SPELLINGS and self._chance(0.6):
            return self._common(lexicon.CASUAL_SPELLINGS[word])
        if casual and len(word) > 3 and word.isalpha() and self._chance(DRAWN_OUT_SHARE):
            return word + word[-1] * self._number(1, 3)
        if len(word) > 4 and word.isalpha() and self._chance(TYPO_SHARE):
            return self._typo(word)
        return word

    def _typo(self, word: str) -> str:
        """Drop a letter, double it, or swap it with the next one; the first letter stays."""
        at = self._number(1, len(word) - 2)
        kept, letter, rest = word[:at], word[at], word[at + 1 :]
        return self._pick(
            (kept + rest, kept + letter + letter + rest, kept + rest[0] + letter + rest[1:])
        )

    def _pick(self, options: Sequence[_Option]) -> _Option:
        return options[int(self._random.random() * len(options))]

    def _common(self, options: Sequence[_Option]) -> _Option:
        """One of the options, the first ones most often: words are not used evenly either."""
        return options[int(self._random.random() ** SKEW * len(options))]

    def _weighted(self, options: Sequence[tuple[_Option, float]]) -> _Option:
        """One of the options, whose weights sum to 1."""
        point = self._random.random()
        for option, weight in options:
            point -= weight
            if point < 0:
                return option
        return options[-1][0]

    def _number(self, low: int, high: int) -> int:
        return low + int(self._random.random() * (high - low + 1))

    def _chance(self, share: float) -> bool:
        return self._random.random() < share
