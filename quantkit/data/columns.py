"""The cells of a table, as a `Source` describes them, as an `Example`."""

from collections.abc import Mapping

from quantkit.data.cleaning import clean
from quantkit.data.readers import parse_list
from quantkit.data.schema import Answer, Example
from quantkit.errors import DataError
from quantkit.heads import Kind
from quantkit.source import Source

__all__ = ["answer_of", "check_source", "columns_of", "example_of", "kind_of"]

Cells = Mapping[str, object]


def kind_of(source: Source) -> Kind:
    """What is answered; with a column of words, one label for each of them."""
    return source.kind or ("words" if source.tokens else "classification")


def check_source(source: Source) -> None:
    """Refuse a description that contradicts itself.

    Raises:
        DataError: the slots of `source` do not go together.
    """
    kind = kind_of(source)
    problems = (
        (kind == "words" and not source.tokens, "kind is words: name the column with tokens"),
        (kind != "words" and source.tokens, f"kind is {kind}, which has no tokens"),
        (kind != "words" and source.question, f"kind is {kind}, which has no question"),
        (kind == "words" and source.text_pair, "words have a question, not a text_pair"),
        (kind == "words" and source.cleaning, "cleaning is for texts, not for lists of words"),
        (
            kind != "classification" and source.drop_labels,
            f"drop_labels is for classification, not for {kind}",
        ),
        (
            kind in ("regression", "features") and source.labels,
            f"kind is {kind}, which has no labels",
        ),
        (
            len(set(source.labels or ())) < len(source.labels or ()),
            f"labels names one twice: {', '.join(source.labels or ())}",
        ),
    )
    for wrong, message in problems:
        if wrong:
            raise DataError(f"data: {message}. Correct the slot `data` of the recipe.")


def columns_of(source: Source) -> list[str]:
    """The names of the columns that are read."""
    texts = [source.tokens, source.question] if source.tokens else [source.text, source.text_pair]
    label = None if kind_of(source) == "features" else source.label
    return [name for name in (*texts, label) if name is not None]


def example_of(where: str, cells: Cells, source: Source) -> Example:
    """One row; a cleaned text may be empty.

    Raises:
        DataError: a cell is missing, or is no text, label or list as its column needs.
    """
    answer = None if kind_of(source) == "features" else answer_of(where, cells, source)
    if source.tokens:
        words = _words(cells[source.tokens], source.tokens, where)
        name = source.question
        return Example(where, words, answer, _words(cells[name], name, where) if name else None)
    name = source.text_pair
    second = _cleaned(cells[name], name, where, source) if name else None
    return Example(where, _cleaned(cells[source.text], source.text, where, source), answer, second)


def answer_of(where: str, cells: Cells, source: Source) -> Answer:
    """The label, labels or number of a row; labels are strings, also those written as numbers.

    Raises:
        DataError: the cell is missing, or is no label or list of labels.
    """
    kind, name = kind_of(source), source.label
    cell = cells[name]
    if kind == "words":
        return _words(cell, name, where)
    if kind == "multilabel" and not _holds_list(cell):
        return [label.strip() for label in _text(cell, name, where).split(",") if label.strip()]
    if kind == "multilabel":
        return _words(cell, name, where)
    label = _text(cell, name, where).strip()
    if not label:
        raise DataError(f"{where}: the {name} is empty. Add a label, or remove the row.")
    return label


def _cleaned(cell: object, name: str, where: str, source: Source) -> str:
    text = _text(cell, name, where)
    return clean(text, source.cleaning) if source.cleaning else text


def _text(cell: object, name: str, where: str) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float):
        return str(cell)
    what = "is missing" if cell is None else f"holds a {type(cell).__name__}, not a text"
    raise DataError(f"{where}: the {name} {what}. Correct the row, or remove it.")


def _words(cell: object, name: str, where: str) -> list[str]:
    """A list column, a Python list of strings as text, or words with spaces between them."""
    if isinstance(cell, list):
        return [_text(word, name, where) for word in cell]
    text = _text(cell, name, where)
    return parse_list(text, name, where) if _holds_list(text) else text.split()


def _holds_list(cell: object) -> bool:
    """Whether a cell is, or is written as, a list; "[URL] baru" is a text."""
    if not isinstance(cell, str):
        return isinstance(cell, list)
    return cell.lstrip().startswith(("['", '["', "[]"))
