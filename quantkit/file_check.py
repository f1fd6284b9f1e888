"""Whether an exported file scores on the test rows what the model that was trained scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.answers import decisions
from quantkit.checkpoint import padding_of
from quantkit.data import TaskData, inputs_of, references_of
from quantkit.errors import ParityError
from quantkit.metrics import MAIN, agreement, main_score
from quantkit.prediction import predict
from quantkit.runtime import load
from quantkit.training_rows import encoded_split

__all__ = ["FileCheck", "check_file"]

FEW_ROWS = 1000
TOLERANCE_OF_FEW = 0.005  # of a score, as a share; one row of 209 moves it by as much
TOLERANCE = 0.001


@dataclass(frozen=True)
class FileCheck:
    """Main score of the test rows, by the training loop's own model and by the file."""

    score: str  # its name
    model: float
    file: float
    labels_equal: float  # share
    rows: int

    @property
    def tolerance(self) -> float:
        """How far the scores may be apart: half a point below 1,000 rows, else a tenth."""
        return TOLERANCE_OF_FEW if self.rows < FEW_ROWS else TOLERANCE


def check_file(
    trained: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    task: TaskData,
    limit: int,
) -> FileCheck:
    """Compare an exported folder with the model that training left, on all test rows.

    Args:
        trained: as the training loop evaluates it.
        tokenizer: its.
        folder: with the ONNX file.
        task: its split `test` is read.
        limit: tokens a text may have.

    Raises:
        ParityError: the scores are further apart than `FileCheck.tolerance`.
    """
    encoded = encoded_split(task, "test", trained, tokenizer, limit)
    own = predict(trained, encoded, pad_token_id=padding_of(tokenizer))
    outputs = load(folder).outputs(inputs_of(task.splits["test"], task.head))
    references: Any = references_of(task.splits["test"], task.head)
    ours, theirs = (decisions(task.head, each) for each in (own, outputs))
    found = FileCheck(
        MAIN[task.head.kind],
        main_score(task.head, references, ours),
        main_score(task.head, references, theirs),
        agreement(task.head, ours, theirs),
        len(task.splits["test"]),
    )
    if not abs(found.file - found.model) <= found.tolerance:
        raise ParityError(
            f"The exported file's {found.score} on the {found.rows} test rows is "
            f"{100 * found.file:.2f}, and the trained model's {100 * found.model:.2f}: more than "
            f"{100 * found.tolerance:g} points apart, so the file is not kept. This is a defect: "
            f"please report it with the recipe."
        )
    return found
