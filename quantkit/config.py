"""How a frozen dataclass doubles as a section of a recipe."""

from pydantic import ConfigDict

__all__ = ["STRICT"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
