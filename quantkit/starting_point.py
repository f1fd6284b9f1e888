"""The model and tokenizer that a recipe's fine-tuning begins with."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.checkpoint import builtin_model, load_for_training
from quantkit.data import TaskData
from quantkit.data.tokenizer import train_wordpiece
from quantkit.data.vocabulary import train_vocabulary
from quantkit.errors import RecipeError
from quantkit.recipe import Recipe
from quantkit.recurrent import build_recurrent
from quantkit.recurrent_slot import Recurrent
from quantkit.student import every_second_layer

__all__ = ["StartingPoint", "refuse_unlabelled", "starting_point"]

BUILTIN = (
    "The built-in model (4 layers x 256, trained from scratch) on built-in generated data is a "
    "stand-in for IndoBERT: its figures say nothing about real text."
)
STUDENT = (
    "The model is a student of {layers} layers, begun with every second layer of {model}: a "
    "stand-in for a DistilBERT that was distilled in pretraining, not one."
)


@dataclass(frozen=True)
class StartingPoint:
    """An untrained or pretrained model; `notes` is what every report on it has to repeat."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()


def starting_point(recipe: Recipe, task: TaskData) -> StartingPoint:
    """Load or build what the recipe names; the same bits for the same seed.

    Raises:
        CheckpointError: the model cannot be loaded, or has no layers to choose from.
        RecipeError: a task that the model has no head for.
    """
    refuse_unlabelled(task)
    if recipe.model == "recurrent" or recipe.recurrent is not None:
        return _recurrent(recipe, task)
    if recipe.model == "builtin":
        return _builtin(recipe, task)
    torch.manual_seed(recipe.finetune.seed)  # the fresh head is part of the result
    model, tokenizer = load_for_training(recipe.model, task.head)
    if recipe.student is None:
        return StartingPoint(model, tokenizer)
    student = every_second_layer(model)
    note = STUDENT.format(layers=student.config.num_hidden_layers, model=recipe.model)
    return StartingPoint(student, tokenizer, (note,))


def refuse_unlabelled(task: TaskData) -> None:
    """Refuse to train on rows without labels.

    Raises:
        RecipeError: the task has none.
    """
    if task.head.kind == "features":
        raise RecipeError(
            f"The task {task.name} has no labels: a model of features is quantized as it is. "
            f"Use quantkit ptq --checkpoint MODEL --texts FILE."
        )


def _builtin(recipe: Recipe, task: TaskData) -> StartingPoint:
    if task.head.kind == "words":
        raise RecipeError(
            "The built-in model reads texts, not sentences of words. Choose another with --model."
        )
    tokenizer = train_wordpiece(task.splits["train"]["text"])
    torch.manual_seed(recipe.finetune.seed)
    return StartingPoint(builtin_model(tokenizer, task.head), tokenizer, (BUILTIN,))


def _recurrent(recipe: Recipe, task: TaskData) -> StartingPoint:
    slot = recipe.recurrent or Recurrent()
    if task.head.kind != "classification" or recipe.model != "recurrent":
        raise RecipeError(
            f"A recurrent baseline answers one label a text, and needs `model: recurrent`; the "
            f"recipe has model {recipe.model!r} and task {task.name} ({task.head.kind})."
        )
    texts = task.splits["train"]["text"][:]
    tokenizer = train_vocabulary(texts, slot.vocabulary)
    # As many tokens as the longest training text has; that is what `unmasked` pads to.
    longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    limit = min(longest, recipe.max_length or longest)
    torch.manual_seed(recipe.finetune.seed)
    model = build_recurrent(slot, tokenizer, task.labels, max_length=limit, padded_length=limit)
    return StartingPoint(model, tokenizer)
