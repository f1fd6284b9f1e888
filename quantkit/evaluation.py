"""Scoring an exported folder on the rows of a task."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.answers import decisions
from quantkit.data import TaskData, inputs_of, load_task, references_of, without_overlap
from quantkit.errors import DataError
from quantkit.heads import Head
from quantkit.metrics import Answers, ClassScores, per_class, scores
from quantkit.onnx_file import folder_of
from quantkit.runs import Run
from quantkit.runtime import load

__all__ = ["Evaluation", "evaluate_folder"]


@dataclass(frozen=True)
class Evaluation:
    """Scores as shares, those of each class, and what a reader has to know about the rows."""

    scores: dict[str, float]
    classes: tuple[ClassScores, ...]
    rows: int
    notes: tuple[str, ...]


def evaluate_folder(
    folder: Path,
    task: str,
    data: Path | None,
    split: str,
    *,
    engine: str = "onnxruntime",
    device: str = "cpu",
) -> Evaluation:
    """Score a model on a task's rows; on another task than its own, without what it has seen.

    Args:
        folder: an exported folder; its run tells task and data where they are not given.
        task: a task's name, or "".
        data: the dataset's folder, or None.
        split: train, validation or test.
        engine: as `load` has it.
        device: `cpu` or `cuda`.

    Raises:
        DataError: no task, an unknown split, or a model that answers something else than the
            task asks.
    """
    session = load(folder, engine=engine, device=device)
    run = Run(folder_of(session.path).parent)
    own = run.recipe() if run.complete else None
    if own is not None and task in ("", own.task):
        rows = load_task(own.task, data or run.data(), own.data)
    else:
        if not task:
            raise DataError(f"{folder} belongs to no run. Say what to score it on with --task.")
        rows = load_task(task, data)
        if own is not None:
            rows = without_overlap(rows, load_task(own.task, run.data(), own.data))
    if split not in rows.splits:
        raise DataError(f"--split is {split!r}; there are {', '.join(rows.splits)}.")
    order = _order(session.head, rows, folder)
    test = rows.splits[split]
    answers = decisions(session.head, session.outputs(inputs_of(test, rows.head)))
    if order is not None:
        answers = order[np.asarray(answers)]
    references: Answers = references_of(test, rows.head)
    return Evaluation(
        scores(rows.head, references, answers),
        per_class(rows.head, references, answers),
        len(test),
        rows.notes,
    )


def _order(head: Head, task: TaskData, folder: Path) -> np.ndarray | None:
    """The task's class id of each of the model's; None where they are the same.

    SmSA and NusaX have the same three classes in different orders.
    """
    wanted = task.head
    if head == wanted:
        return None
    same = head.kind == wanted.kind == "classification" and set(head.labels) == set(wanted.labels)
    if not same:
        raise DataError(
            f"{folder} answers {head.described()}; {task.name} asks for {wanted.described()}. "
            f"Choose the task it was trained on with --task."
        )
    return np.array([wanted.labels.index(label) for label in head.labels])
