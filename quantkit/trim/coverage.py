"""What a trimmed vocabulary covers, in numbers and in words."""

from dataclasses import dataclass

from torch import nn

from quantkit.trim.corpus import Change

__all__ = ["Coverage"]

MEGABYTE = 1e6


@dataclass(frozen=True)
class Coverage:
    """Rows of the word table before and after, and how texts are split.

    rows_before   of the checkpoint's table
    reachable     of these, up to the largest id that the tokenizer could produce
    rows_after    that stay
    texts         in the corpus; all of them are split into the same tokens as before
    tokens        in these texts, each counted as often as it occurs
    held_out      of texts that had no part in choosing the tokens; None: there were too few
    validation    whether those are the validation split; else every tenth text of the corpus,
                  split by a vocabulary of the other nine tenths
    """

    rows_before: int
    reachable: int
    rows_after: int
    texts: int
    tokens: int
    held_out: Change | None
    validation: bool

    def note(self, table: nn.Module) -> str:
        """A few sentences for a report.

        Args:
            table: the trimmed word table, float or quantized, whose bytes a row are counted.
        """
        removed = self.reachable - self.rows_after
        saved = removed * _row_bytes(table, self.rows_after) / MEGABYTE
        return (
            f"The vocabulary is trimmed to {self.texts:,} training texts: {self.rows_after:,} of "
            f"{self.reachable:,} word rows that the tokenizer reached stay (the checkpoint has "
            f"{self.rows_before:,}), which saves {saved:.2f} MB. All {self.tokens:,} tokens of "
            f"these texts are as before. {self._held_out()}"
        )

    def _held_out(self) -> str:
        found = self.held_out
        if found is None:
            return "There were too few texts to hold some out: how others fare was not measured."
        where = (
            f"Of {found.texts:,} validation texts"
            if self.validation
            else f"Of {found.texts:,} training texts, held out from a vocabulary of nine tenths,"
        )
        return (
            f"{where} {found.same:.2%} of the tokens are as before; unknown "
            f"{found.unknown[0]:.2%} before and {found.unknown[1]:.2%} now; pieces a word "
            f"{found.pieces[0]:.3f} before and {found.pieces[1]:.3f} now."
        )


def _row_bytes(table: nn.Module, rows: int) -> float:
    """Bytes of one row, without the 8-bit codes that some rows of a 4-bit table also have."""
    tensors = table.state_dict().items()
    kept = [tensor.nbytes for name, tensor in tensors if not name.startswith("frequent")]
    return float(sum(kept)) / rows
