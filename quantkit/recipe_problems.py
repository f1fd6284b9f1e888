"""What is wrong with a recipe, in words: pydantic's findings with the nearest right spelling."""

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["explain"]


def explain(entry: Mapping[str, Any], kind: type) -> str:
    """One problem in words: path, what was found, what would be right.

    Args:
        entry: of pydantic's `ValidationError.errors()`.
        kind: the dataclass that was validated.
    """
    location = [str(part) for part in entry["loc"]]
    path = ".".join(location)
    if entry["type"] == "value_error":  # keys or slots that contradict one another
        return f"{f'{path}: ' if path else ''}{entry['ctx']['error']}."
    if entry["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _keys_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}."
        return f"unknown key {path}. {hint}"
    if entry["type"].startswith("missing"):
        return f"{path} is missing. Add it: every recipe needs name, task and model."
    if entry["type"] == "literal_error":
        return f"{path} is {entry['input']!r}; quantkit supports {entry['ctx']['expected']}."
    if entry["type"] == "union_tag_invalid":
        expected = entry["ctx"]["expected_tags"]
        return f"{path}.name is {entry['ctx']['tag']!r}; quantkit supports {expected}."
    return f"{path} is {entry['input']!r}: {entry['msg'][0].lower()}{entry['msg'][1:]}."


def _keys_at(kind: type, location: list[str]) -> list[str]:
    """The keys that are allowed at a path; a union's member is found by its name tag."""
    here: Any = kind
    for part in location:
        slots = [member for member in _members(here) if is_dataclass(member)]
        tagged = [slot for slot in slots if get_type_hints(slot).get("name") == Literal[part]]
        here = tagged[0] if tagged else get_type_hints(slots[0])[part]
    members = _members(here)
    return [field.name for member in members if is_dataclass(member) for field in fields(member)]


def _members(kind: Any) -> list[Any]:  # noqa: ANN401
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        return [member for part in get_args(kind) for member in _members(part)]
    return [kind]
