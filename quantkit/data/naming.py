"""What to say about a name that is not known."""

import difflib
from collections.abc import Sequence

__all__ = ["unknown"]


def unknown(what: str, found: str, known: Sequence[str]) -> str:
    """A sentence with the known names and, if one is spelt much alike, that one."""
    folded = {name.casefold(): name for name in reversed(known)}
    near = difflib.get_close_matches(found.strip().casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"unknown {what} {found!r}. Known {what}s: {', '.join(known)}.{hint}"
