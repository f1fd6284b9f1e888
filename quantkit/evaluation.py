"""Scoring an exported folder on the rows of a task."""

from pathlib import Path

import numpy as np

from quantkit.data import load_task
from quantkit.errors import DataError
from quantkit.metrics import classification_scores
from quantkit.runs import Run
from quantkit.runtime import load

__all__ = ["evaluate_folder"]


def evaluate_folder(folder: Path, task: str, data: Path | None, split: str) -> dict[str, float]:
    """Accuracy, precision, recall and F1, as shares; per class under the label's name.

    Args:
        folder: an exported folder; its run tells task and data where they are not given.
        task: a task's name, or "".
        data: the dataset's folder, or None.
        split: train, validation or test.

    Raises:
        DataError: an unknown split, or a model with other labels than the task's.
    """
    session = load(folder)
    run = Run(session.path.parent.parent.parent)
    if not task:
        task = run.recipe().task
        data = data or run.data()
    rows = load_task(task, data)
    if split not in rows.splits:
        raise DataError(f"--split is {split!r}; there are {', '.join(rows.splits)}.")
    if session.labels != rows.labels:
        raise DataError(
            f"{folder} answers with the labels {', '.join(session.labels)}; {task} has "
            f"{', '.join(rows.labels)}. Choose the task it was trained on with --task."
        )
    references = np.asarray(rows.splits[split]["label"])
    answers = session.logits(rows.splits[split]["text"]).argmax(1)
    scores = classification_scores(references, answers, len(rows.labels))
    return {_named(key, rows.labels): value for key, value in scores.items()}


def _named(key: str, labels: tuple[str, ...]) -> str:
    kind, _, index = key.rpartition("_")
    return f"{kind}_{labels[int(index)]}" if index.isdigit() else key
