"""What callers hand to a session, checked and in the form that the tokenization takes."""

from collections.abc import Iterable, Mapping, Sequence

from quantkit.errors import DataError
from quantkit.tokenization import Inputs

__all__ = ["Row", "checked_inputs", "read_row"]

Part = str | Sequence[str]  # a text, or words
Row = tuple[Part, Part | None]  # first and second of one row, as `Inputs` has them


def checked_inputs(
    first: Sequence[Part], second: Sequence[Part] | None = None, *, words: bool
) -> Inputs:
    """Rows for the tokenization; with `words`, strings are split at white space.

    Raises:
        DataError: a row is not a text (or words), or there are not as many in `second`.
    """
    for values in (first, second):
        if isinstance(values, str | bytes):
            raise DataError(f"Expected a list of rows; found the one text {values!r}. Pass [text].")
    if second is not None and len(first) != len(second):
        raise DataError(f"There are {len(first)} texts and {len(second)} pairs. Pass one to each.")
    columns = [
        None if values is None else [_part(part, f"Row {n}", words) for n, part in _counted(values)]
        for values in (first, second)
    ]
    return Inputs(columns[0] or [], columns[1])


def read_row(row: str | Mapping[str, object], number: int, *, words: bool) -> Row:
    """One row of a stream: a text, or {text, text_pair}, or for words {tokens, question}.

    Other keys are ignored; `number`, from 1, is for messages. With `words`, a text stands
    for the words in it.

    Raises:
        DataError: there is no text, or what stands in its place is none.
    """
    where = f"Row {number}"
    if not isinstance(row, Mapping):
        return _part(row, where, words), None
    names = ("tokens", "text") if words else ("text",)
    name = next((name for name in names if name in row), None)
    if name is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{where} has no {' or '.join(names)}; found {found}. Name its text so.")
    other = "question" if words else "text_pair"
    second = row.get(other)
    return (
        _part(row[name], f"{where}, {name}", words),
        None if second is None else _part(second, f"{where}, {other}", words),
    )


def _counted(values: Iterable[object]) -> Iterable[tuple[int, object]]:
    return enumerate(values, start=1)


def _part(value: object, where: str, words: bool) -> Part:
    """A text, or with `words` a list of words."""
    if words and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_text(word, f"{where}, word {at}") for at, word in _counted(value)]
    text = _text(value, where, " or a list of words" if words else "")
    return text.split() if words else text


def _text(value: object, where: str, otherwise: str = "") -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where} is a {type(value).__name__} ({value!r:.40}), not a text{otherwise}. "
            f"Pass a string."
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no tokenizer takes
        raise DataError(f"{where} holds a character that UTF-8 has not: {value!r:.40}.") from None
    return value
