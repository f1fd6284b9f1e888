"""Trimming a vocabulary to a corpus: word rows of other tokens go, and ids are numbered anew."""

from quantkit.trim.coverage import Coverage
from quantkit.trim.model import Trimmed, trim_to_corpus

__all__ = ["Coverage", "Trimmed", "trim_to_corpus"]
