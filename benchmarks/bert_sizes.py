"""BERT-base's sizes, which benchmarks without real weights share."""

from dataclasses import dataclass

__all__ = ["Sizes"]


@dataclass(frozen=True)
class Sizes:
    """A model; the defaults are BERT-base with the rows that IndoBERT's tokenizer reaches."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocab: int = 30521
