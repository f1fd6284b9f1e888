"""How a recipe describes a table of the user's own: its columns, cleaning and split."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from quantkit.config import STRICT

__all__ = ["Cleaning", "Source", "Split"]

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


@dataclass(frozen=True, config=STRICT)
class Cleaning:
    """What is removed from each text, as the studies of Indonesian election tweets did."""

    lower: bool = True
    urls: bool = True
    users: bool = True  # @name
    hashtags: bool = True
    retweets: bool = True  # a leading RT
    spaces: bool = True  # runs of white space become one space
    duplicates: bool = True  # later rows with an equal cleaned text
    stop_words: bool = False


@dataclass(frozen=True, config=STRICT)
class Split:
    """Shares of the distinct texts of one file, drawn stratified by label."""

    validation: Share = 0.1
    test: Share = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


@dataclass(frozen=True, config=STRICT)
class Source:
    """Columns of a CSV, TSV, JSONL or Parquet file, or of a folder with one file per split."""

    text: str = "text"
    label: str = "label"
    text_pair: str | None = None  # the second text of a pair
    tokens: str | None = None  # a column of lists of words: word labelling
    question: str | None = None  # with tokens: the question before each passage
    kind: Literal["classification", "multilabel", "regression", "words", "features"] | None = (
        None  # None: words with tokens, else classification
    )
    labels: tuple[str, ...] | None = None  # in the order of their ids; None: sorted, all splits
    drop_labels: tuple[str, ...] = ()  # rows with these labels are left out
    cleaning: Cleaning | None = None
    split: Split = Field(default_factory=Split)
