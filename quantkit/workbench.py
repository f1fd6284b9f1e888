"""A float model with the rows that its quantized versions are judged on; no test rows.

What a long analysis has finished is kept beside the run's results:

NAME/sensitivity-w4a8.json           the finished analysis
NAME/sensitivity-w4a8.partial.json   the units that are done of an unfinished one
NAME/sensitivity-w4a8.layers/        the layers that are done of an unfinished quantization
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.batching import Encoded, encode, encode_unlabelled
from quantkit.calibration_texts import calibration_batches, word_counts
from quantkit.checkpoint import length_limit, load_float, reachable_rows, takes_token_types
from quantkit.closeness import FloatAnswers
from quantkit.data import TaskData, inputs_of, references_of
from quantkit.encoder import describe, head_of
from quantkit.errors import DataError, QuantkitError
from quantkit.files import write_json
from quantkit.heads import Head
from quantkit.mixed_precision import Mixed, Sources, eight_bit, search
from quantkit.partial import PartialResults
from quantkit.ptq import LayerStore, Progress, Quantized, quantize
from quantkit.recipe import Recipe
from quantkit.sensitivity import Sensitivity, analyse, apart
from quantkit.tokenization import Inputs
from quantkit.trim import trim_to_corpus

__all__ = ["DECIDING_ROWS", "TRAINING_TEXTS", "VALIDATION_ROWS", "Material", "Workbench"]

VALIDATION_ROWS = 256  # of an analysis, at most
TRAINING_TEXTS = 1000  # that the divergence is of, at most
DECIDING_ROWS = 2000  # validation rows that a search reads, at most


@dataclass(frozen=True)
class Material:
    """Where a model is and what it is quantized and judged with.

    Attributes:
        recipe: how it is quantized.
        checkpoint: the float model's folder.
        calibration: texts that ranges are taken from.
        task: whose validation rows and training texts the model is judged on.
        results: where the analysis is written.
    """

    recipe: Recipe
    checkpoint: Path
    calibration: Inputs
    task: TaskData
    results: Path  # without its ending


class Workbench:
    """Loads a model and its rows, and measures quantized versions of it.

    Args:
        material: the model and its rows.
        rows: at most so many validation rows and training texts in an analysis; default:
            `VALIDATION_ROWS` and `TRAINING_TEXTS`.
        progress: told what is done, how many are done, and of how many.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        DataError: the task has no labels, or asks for other answers than the model gives.
    """

    def __init__(
        self, material: Material, *, rows: int | None = None, progress: Progress | None = None
    ) -> None:
        self._material, self._recipe, self._task = material, material.recipe, material.task
        self._rows = rows
        self._say = progress or (lambda *_: None)
        self._model, self._tokenizer = _loaded(material)
        self._limit = length_limit(self._model, self._tokenizer, self._recipe.max_length)
        self._types = takes_token_types(self._model)
        chosen = self._model, self._tokenizer, material.calibration
        self._batches = list(calibration_batches(*chosen, self._recipe, self._limit))
        # Which rows of a 4-bit table keep 8 bits; other tables do not ask.
        asked = self._recipe.embeddings.bits == 4
        self._counts = word_counts(*chosen, self._limit) if asked else None
        self._texts = self._training_texts(rows or TRAINING_TEXTS)
        self._kept: list[LayerStore | PartialResults] = []

    def sensitivity(self, quantized: Quantized | None = None) -> Sensitivity:
        """The analysis of the recipe; its file is written, or read if it is of the same things.

        Args:
            quantized: the model by `sensitivity.apart(recipe)`, with `fold=False`; default: made.
        """
        target = self._beside(".json")
        found = self._analysed(self._recipe, "", quantized, _known(target))
        write_json(target, found.to_json())
        return found

    def search(self, max_drop: float) -> tuple[Mixed, FloatAnswers]:
        """The smallest model within a budget of points, and what it was judged by."""
        low = self._quantized(apart(self._recipe), "")
        at_low = self.sensitivity(low)
        self._say("reading the float model", 0, 1)
        answers = FloatAnswers(
            self._model,
            self._validation(DECIDING_ROWS),
            self._texts,
            pad_token_id=describe(self._model).pad_token_id,
        )
        sources = Sources(low, at_low, lambda: self._high, self._at_high)
        return search(self._model, answers, sources, max_drop, progress=self._say), answers

    def close(self) -> None:
        """Remove what was kept for the case of a kill: the work is complete."""
        for kept in self._kept:
            kept.clear()

    @cached_property
    def _high(self) -> Quantized:
        return self._quantized(eight_bit(self._recipe), "-eight")

    def _at_high(self) -> Sensitivity:
        return self._analysed(eight_bit(self._recipe), "-eight", self._high, None)

    def _quantized(self, recipe: Recipe, suffix: str) -> Quantized:
        return quantize(
            self._model,
            self._batches,
            recipe=recipe,
            reachable_rows=reachable_rows(self._tokenizer),
            word_counts=self._counts,
            store=self._layers(suffix),
            progress=self._say,
            fold=False,
        )

    def _analysed(
        self,
        recipe: Recipe,
        suffix: str,
        quantized: Quantized | None,
        known: tuple[str, Mapping[str, Any]] | None,
    ) -> Sensitivity:
        finished = PartialResults(self._beside(f"{suffix}.partial.json"), known)
        self._kept.append(finished)
        return analyse(
            self._model,
            recipe,
            self._batches,
            texts=self._validation(self._rows or VALIDATION_ROWS),
            kl_texts=self._texts,
            reachable_rows=reachable_rows(self._tokenizer),
            word_counts=self._counts,
            quantized=quantized,
            layers=self._layers(suffix),
            finished=finished,
            progress=self._say,
        )

    def _layers(self, suffix: str) -> LayerStore:
        store = LayerStore(self._beside(f"{suffix}.layers"))
        self._kept.append(store)
        return store

    def _beside(self, ending: str) -> Path:
        return self._material.results.with_name(self._material.results.name + ending)

    def _validation(self, count: int) -> Encoded:
        """A random sample of the validation rows, in their order; all of them if they are few."""
        rows = self._task.splits["validation"]
        generator = np.random.default_rng(self._recipe.calibration.seed)
        rows = rows.select(sorted(generator.permutation(len(rows))[:count].tolist()))
        head = self._task.head
        references = references_of(rows, head)
        return encode(
            self._tokenizer,
            inputs_of(rows, head),
            head,
            references,
            self._limit,
            types=self._types,
        )

    def _training_texts(self, count: int) -> Encoded:
        """Random training texts; where there are enough, others than calibration has read."""
        rows = self._task.splits["train"]
        slot = self._recipe.calibration
        order = np.random.default_rng(slot.seed).permutation(len(rows))  # calibration's
        chosen = np.concatenate([order[slot.samples :], order[: slot.samples]])[:count]
        head = self._task.head
        inputs = inputs_of(rows.select(chosen.tolist()), head)
        return encode_unlabelled(self._tokenizer, inputs, head, self._limit, types=self._types)


def _loaded(material: Material) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, trimmed if the recipe says so."""
    model, tokenizer = load_float(material.checkpoint)
    _check(head_of(model), material)
    if material.recipe.embeddings.trim != "corpus":
        return model, tokenizer
    trimmed = trim_to_corpus(model, tokenizer, material.calibration, held_out=Inputs([]))
    return trimmed.model, trimmed.tokenizer


def _check(head: Head, material: Material) -> None:
    """The model has to answer what the task has labels of."""
    task, asked = material.task.name, material.task.head
    if asked.kind == "features":
        raise DataError(
            f"The task {task} has no labels, and without them no drop of a score can be measured. "
            f"Name a task that has them by --recipe, or the column that holds them by data.label."
        )
    if head != asked:
        raise DataError(
            f"{material.checkpoint} answers {head.kind} ({', '.join(head.labels)}); {task} asks "
            f"for {asked.kind} ({', '.join(asked.labels)}). Take the task that the model was "
            f"trained on, by --recipe."
        )


def _known(file: Path) -> tuple[str, Mapping[str, Any]] | None:
    """A finished analysis, if there is one that can be read."""
    try:
        found = Sensitivity.load(file)
    except (QuantkitError, KeyError, TypeError):
        return None
    return found.mark, found.results
