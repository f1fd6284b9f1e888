"""What each part of a model loses when it alone is quantized.

The whole model is quantized once; then one unit after the other is put into the float model and
its answers are compared with the float model's. Folding is off, because a folded smoothing
vector would tie attention's output to the value projection of another unit, and so is
compensation, with which a layer makes up for errors that the float model does not have.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit.batching import Encoded
from quantkit.calibration import Batch, batches_of
from quantkit.closeness import Closeness, FloatAnswers, row_count
from quantkit.encoder import EncoderPlan, describe, unroll
from quantkit.errors import QuantkitError
from quantkit.files import read_json
from quantkit.heads import Kind
from quantkit.metrics import MAIN
from quantkit.partial import PartialResults
from quantkit.placement import decide, swap
from quantkit.ptq import LayerStore, Progress, Quantized, quantize
from quantkit.ptq.resume import fingerprint
from quantkit.recipe import Recipe, recipe_hash
from quantkit.replay import Replay
from quantkit.units import Sizes, Unit, sizes_of, units_of

__all__ = ["Sensitivity", "UnitSensitivity", "analyse", "apart", "swappable", "swapped"]

SCHEMA = 1
WHOLE, FLOAT = "the whole model", "the float model"  # names beside those of units


@dataclass(frozen=True)
class UnitSensitivity:
    """What the float model loses when one unit is quantized to `bits`."""

    unit: Unit
    bits: int
    closeness: Closeness
    sizes: Sizes

    @property
    def saved_against_8(self) -> int:
        """Bytes that the unit is smaller than with 8 bits; 0 if it has 8."""
        return self.sizes.at_8_bits - self.sizes.now

    @property
    def saved_against_float(self) -> int:
        """Bytes that the unit is smaller than in float32."""
        return self.sizes.as_float - self.sizes.now

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "saved_against_8": self.saved_against_8,
            "saved_against_float": self.saved_against_float,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "UnitSensitivity":
        """The inverse of `to_json`."""
        return cls(
            Unit.from_json(values["unit"]),
            values["bits"],
            Closeness.from_json(values["closeness"]),
            Sizes(**values["sizes"]),
        )


@dataclass(frozen=True)
class Sensitivity:
    """All units, the one with the largest divergence first, and the whole model.

    Attributes:
        mark: of what it is: model, recipe, calibration and rows.
        kind: of the model's answers, which says what `Closeness` means.
        main: name of the main score.
        float_score: the float model's, a share.
        validation_rows: that scores, agreement and SQNR are of.
        training_texts: that the divergence is of.
        whole: all units quantized together.
        units: worst first.
    """

    mark: str
    kind: Kind
    main: str
    float_score: float
    validation_rows: int
    training_texts: int
    whole: Closeness
    units: tuple[UnitSensitivity, ...]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """What `PartialResults` held when it was complete."""
        found = {each.unit.name: each.to_json() for each in self.units}
        return found | {WHOLE: self.whole.to_json(), FLOAT: {"score": self.float_score}}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        units = [unit.to_json() for unit in self.units]
        return {"schema": SCHEMA, **asdict(self), "units": units}

    @classmethod
    def load(cls, path: Path) -> "Sensitivity":
        """Read the file that `to_json` was written to.

        Raises:
            QuantkitError: it is not there, damaged, or of another schema.
        """
        values = read_json(path)
        if values.pop("schema", None) != SCHEMA:
            raise QuantkitError(f"{path} is not of schema {SCHEMA}. Make it again.")
        units = tuple(UnitSensitivity.from_json(each) for each in values["units"])
        whole = Closeness.from_json(values["whole"])
        return cls(**{**values, "units": units, "whole": whole})


def analyse(
    model: PreTrainedModel,
    recipe: Recipe,
    calibration: Iterable[Batch],
    *,
    texts: Encoded,
    kl_texts: Encoded,
    reachable_rows: int | None = None,
    word_counts: Tensor | None = None,
    quantized: Quantized | None = None,
    layers: LayerStore | None = None,
    finished: PartialResults | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Quantize each unit alone and measure what changes; `model` itself is left as it is.

    Args:
        model: float, as `quantize` takes it.
        recipe: what `quantize` would be given.
        calibration: batches for the ranges.
        texts: validation rows with their references.
        kl_texts: training texts; their labels are not read.
        reachable_rows: as for `quantize`.
        word_counts: as for `quantize`.
        quantized: the model, quantized by `apart(recipe)` with `fold=False`; default: made here.
        layers: where the quantization's finished layers are kept; default: nowhere.
        finished: where the finished units are kept; those that it has are not measured again.
        progress: told what is done, how many are done, and of how many.

    Raises:
        CheckpointError, DataError, RecipeError: as `quantize`.
    """
    recipe, batches = apart(recipe), batches_of(calibration)
    finished, say = finished or PartialResults(None), progress or (lambda *_: None)
    shadow = swappable(model)
    encoder = describe(shadow)
    units = units_of(encoder, decide(encoder, recipe))
    mark = _mark(recipe, shadow, batches, texts, kl_texts, word_counts)
    finished.open(mark)
    missing = [unit for unit in units if finished.get(unit.name) is None]
    if missing or finished.get(WHOLE) is None:
        quantized = quantized or quantize(
            model,
            batches,
            recipe=recipe,
            reachable_rows=reachable_rows,
            word_counts=word_counts,
            store=layers,
            progress=say,
            fold=False,
        )
        _measure(shadow, quantized, encoder, units, texts, kl_texts, finished, say)
    return _gathered(mark, units, texts, kl_texts, finished)


def apart(recipe: Recipe) -> Recipe:
    """The recipe with units that do not make up for each other's errors."""
    return replace(recipe, compensation=None)


def swappable(model: PreTrainedModel) -> PreTrainedModel:
    """A copy, unrolled and in eval mode, whose modules can be replaced; it shares all tensors.

    Of a model in 16 bits it is a whole copy, in float32.
    """
    unrolled = unroll(model)
    tensors = (*unrolled.parameters(), *unrolled.buffers())
    shared = {id(t): t for t in tensors if t.dtype not in (torch.float16, torch.bfloat16)}
    result: PreTrainedModel = copy.deepcopy(unrolled, dict[int, Any](shared))
    nn.Module.float(result)
    result.train(False)
    return result


@contextmanager
def swapped(model: nn.Module, source: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """For the block's duration `model` has the modules of these names from `source`."""
    before = {name: model.get_submodule(name) for name in names}
    swap(model, {name: source.get_submodule(name) for name in names})
    try:
        yield
    finally:
        swap(model, before)


def _measure(
    shadow: PreTrainedModel,
    quantized: Quantized,
    encoder: EncoderPlan,
    units: Sequence[Unit],
    texts: Encoded,
    kl_texts: Encoded,
    finished: PartialResults,
    say: Progress,
) -> None:
    """Measure what is not finished: units in the order of computation, then the whole model."""
    padding = encoder.pad_token_id
    say("reading the float model", 0, len(units))
    answers = FloatAnswers(shadow, texts, kl_texts, pad_token_id=padding)
    finished.put(FLOAT, {"score": answers.score})
    replay = Replay(shadow, encoder, answers.batches)
    for done, unit in enumerate(units):
        if finished.get(unit.name) is None:
            first = len(encoder.layers) if unit.component == "head" else unit.layer or 0
            sizes = sizes_of(unit, shadow, quantized.model)
            with replay.up_to(first), swapped(shadow, quantized.model, unit.modules):
                closeness = answers.closeness(shadow)
            bits = quantized.plan.bits(unit.name) or 0
            finished.put(unit.name, UnitSensitivity(unit, bits, closeness, sizes).to_json())
        say("measuring units", done + 1, len(units))
    if finished.get(WHOLE) is None:
        finished.put(WHOLE, answers.closeness(quantized.model).to_json())


def _gathered(
    mark: str,
    units: Sequence[Unit],
    texts: Encoded,
    kl_texts: Encoded,
    finished: PartialResults,
) -> Sensitivity:
    """What is finished, which is all of it, in order."""
    found = [UnitSensitivity.from_json(_got(finished, unit.name)) for unit in units]
    return Sensitivity(
        mark,
        texts.head.kind,
        MAIN[texts.head.kind],
        float(_got(finished, FLOAT)["score"]),
        row_count(texts),
        row_count(kl_texts),
        Closeness.from_json(_got(finished, WHOLE)),
        tuple(sorted(found, key=lambda each: -each.closeness.divergence)),
    )


def _mark(
    recipe: Recipe,
    model: nn.Module,
    batches: Sequence[Batch],
    texts: Encoded,
    kl_texts: Encoded,
    word_counts: Tensor | None,
) -> str:
    """SHA-256 of all that decides the result."""
    counts = "" if word_counts is None else str(word_counts.tolist())
    parts = [str(SCHEMA), texts.digest(), kl_texts.digest(), counts]
    parts.append(fingerprint(recipe_hash(recipe), model, batches))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _got(finished: PartialResults, name: str) -> Mapping[str, Any]:
    found = finished.get(name)
    if found is None:
        raise ValueError(f"{name} was not measured")
    return found
