"""A task's labelled rows as training takes them, and the score that its epochs compete for."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.answers import decisions
from quantkit.batching import Encoded, encode
from quantkit.checkpoint import padding_of, takes_token_types
from quantkit.data import TaskData, inputs_of, references_of
from quantkit.metrics import main_score
from quantkit.prediction import Outputs

__all__ = ["TrainingRows", "encoded_split"]


@dataclass(frozen=True)
class TrainingRows:
    """What `train.finetune` is given of a task.

    Attributes:
        task: that the rows are of.
        train: tokenized.
        validation: tokenized.
        limit: tokens a text may have.
        pad_token_id: of the tokenizer.
    """

    task: TaskData
    train: Encoded
    validation: Encoded
    limit: int
    pad_token_id: int

    @classmethod
    def of(
        cls,
        task: TaskData,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limit: int,
    ) -> "TrainingRows":
        """Tokenize a task's rows for a model.

        Args:
            task: its splits `train` and `validation` are read.
            model: decides whether tokens have types.
            tokenizer: the model's.
            limit: tokens a text may have.
        """
        train, validation = (
            encoded_split(task, split, model, tokenizer, limit) for split in ("train", "validation")
        )
        return cls(task, train, validation, limit, padding_of(tokenizer))

    def score(self, references: Any, outputs: Outputs) -> float:  # noqa: ANN401
        """The task's main score of all validation rows."""
        head = self.task.head
        return main_score(head, references, decisions(head, outputs))

    def notes(self) -> list[str]:
        """What every report has to repeat: the task's own notes, and texts that are cut."""
        cut = self.train.cut
        if not cut:
            return list(self.task.notes)
        rows = len(self.task.splits["train"])
        return [
            *self.task.notes,
            f"{cut} of {rows} training texts ({cut / rows:.1%}) have more than {self.limit} "
            f"tokens and lose their end.",
        ]


def encoded_split(
    task: TaskData,
    split: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> Encoded:
    """The rows of one split with their labels."""
    rows = task.splits[split]
    return encode(
        tokenizer,
        inputs_of(rows, task.head),
        task.head,
        references_of(rows, task.head),
        limit,
        types=takes_token_types(model),
    )
