"""The parity gate: proof that an exported file computes its model's answers.

Two rounding flips can cascade: the same 8-bit model computed in float32 and in float64
already differs in a few logits. Comparing logits alone would therefore either pass broken
files or fail sound ones, so there are three tests, each with graph optimisation off and on:

(a) exact: every integer Linear, fed the file's own input codes, equals
    `float32(accumulator) * (s_a * s_w) + bias` bit for bit. A product of dequantized numbers
    (`portable`) may be computed in float: its stored numbers equal the model's, and the product
    is as near to the exact one as float32 sums are in any order;
(b) per block, fed the file's own inputs: relative error at most 1e-5, codes apart by at
    most 1 in at most 0.1 % of places;
(c) end to end, over texts: label disagreements and the 99th percentile of |delta logit| at
    most twice what float rounding alone does to the same torch model, one text set aside:
    float64 instead of float32, or a disturbance far below what (b) allows (see `rounding`).
    A float file must give every label, but for ties. A text of words differs as its worst
    token does; features are compared as each text's mean over its tokens, without a label.

The batches are seeded token ids over the vocabulary at 3 x 3 sizes, full and padded, and
the built-in sentences. Texts of the caller's are used only if passed, and never stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, describe, head_of, unroll
from quantkit.errors import ParityError
from quantkit.exporter.answers import Difference, answers, difference
from quantkit.exporter.batches import Arrays
from quantkit.exporter.blocks import BlockErrors, check_blocks
from quantkit.exporter.form import FileForm, file_form
from quantkit.exporter.rounding import DISTURBANCE, disturbed, in_double
from quantkit.exporter.saving import open_model
from quantkit.exporter.stored import check_stored
from quantkit.heads import Head
from quantkit.modules import QuantLinear
from quantkit.runtime import import_onnxruntime, session_options

__all__ = ["Arrays", "ParityResult", "check_parity"]

RELATIVE_ERROR = 1e-5
CODE_DISTANCE = 1
CODE_SHARE = 1e-3
# Below this share of the largest logit a difference is float32 rounding, not a flip.
LOGIT_FLOOR = 1e-5
# Disturbances that are tried. Which codes flip is chance, and one draw may meet none of those that
# a file meets: of a sound 4-bit file for the portable target it allowed too little.
DRAWS = 3
# Half precision rounds by up to 2**-11 of a number, and at more places than LayerNorms.
HALF_DISTURBANCE = 2.0**-9


@dataclass(frozen=True)
class ParityResult:
    """What the gate measured: the worst over all batches and both optimisation levels."""

    products: int  # numbers compared in test (a)
    inexact_products: int
    relative_error: float
    code_distance: int
    code_share: float
    rows: int  # texts compared in test (c), per optimisation level
    disagreements: int
    disagreements_allowed: int
    logit_difference: float  # 99th percentile over rows of the largest |delta logit|
    logit_difference_allowed: float
    # Of a file in half precision, whose float32 twin the rest is of: see `exporter.half`.
    half_disagreements: int | None = None
    half_difference: float | None = None

    def problems(self) -> list[str]:
        """One sentence for each test that failed."""
        found = []
        if self.inexact_products:
            found.append(
                f"(a) {self.inexact_products} of {self.products} integer products differ from "
                f"the model's integers"
            )
        if not self.relative_error <= RELATIVE_ERROR:
            found.append(f"(b) a block is off by {self.relative_error:.1e} relative")
        if self.code_distance > CODE_DISTANCE or self.code_share > CODE_SHARE:
            found.append(
                f"(b) codes are apart by up to {self.code_distance} in {self.code_share:.2%}"
            )
        if self.disagreements > self.disagreements_allowed:
            found.append(
                f"(c) {self.disagreements} of {self.rows} labels differ, "
                f"{self.disagreements_allowed} are explained by float rounding"
            )
        if not self.logit_difference <= self.logit_difference_allowed:
            found.append(
                f"(c) logits differ by {self.logit_difference:.2e}, "
                f"{self.logit_difference_allowed:.2e} is explained by float rounding"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """All fields, and whether the gate passed."""
        return {**asdict(self), "passed": not self.problems()}


def check_parity(
    model: PreTrainedModel,
    proto: onnx.ModelProto,
    batches: Sequence[Arrays],
    *,
    threads: int | None = None,
) -> ParityResult:
    """Run all three tests of `proto` against the torch model it was made from.

    Args:
        model: float or quantized, in eval mode and float32.
        proto: the exported model.
        batches: int64 arrays [batch, length] by input name; see `gate_batches`. Names that
            the model does not take are left out.
        threads: of each session; default: what the CPU quota gives.

    Raises:
        ParityError: a test failed; the message says which and by how much.
    """
    model = unroll(model)
    gate = _Gate(model, describe(model), head_of(model), batches)
    yardstick = gate.yardstick()
    blocks, worst = BlockErrors(), Difference(0, 0.0)
    check_stored(model, gate.plan, proto, blocks)
    form = file_form(gate.plan, model, proto)
    taps = _with_taps(proto, form.taps)
    for optimized in (False, True):
        gate.check_blocks(_session(taps, optimized, threads), form, blocks)
        worst = worst.worse(gate.check_answers(_session(proto, optimized, threads), yardstick))
    result = ParityResult(
        **asdict(blocks),
        rows=sum(len(answers) for answers in yardstick.answers),
        disagreements=worst.disagreements,
        disagreements_allowed=yardstick.allowed.disagreements,
        logit_difference=worst.size,
        logit_difference_allowed=yardstick.allowed.size,
    )
    if problems := result.problems():
        raise ParityError(
            "The exported file does not compute the model's answers: "
            + "; ".join(problems)
            + ". It was not kept. Please report this with the model's config.json and the "
            "versions of onnxruntime and quantkit."
        )
    return result


def check_end(
    model: PreTrainedModel,
    proto: onnx.ModelProto,
    batches: Sequence[Arrays],
    *,
    half: bool,
    threads: int | None = None,
) -> Difference:
    """Test (c) alone: a file's answers against the model's.

    Args:
        model: as in `check_parity`.
        proto: the file.
        batches: as in `check_parity`.
        half: whether the file is in half precision: then answers may be as far off as rounding
            every LayerNorm to that moves the model's.
        threads: as in `check_parity`.

    Raises:
        ParityError: they differ by more than twice what rounding explains, one text set aside.
    """
    model = unroll(model)
    gate = _Gate(model, describe(model), head_of(model), batches)
    yardstick = gate.yardstick(HALF_DISTURBANCE if half else DISTURBANCE)
    found = gate.check_answers(_session(proto, True, threads), yardstick)
    allowed = yardstick.allowed
    labels = allowed.disagreements if gate.head.labels else 0
    if found.disagreements > labels or not found.size <= allowed.size:
        raise ParityError(
            f"In {'half' if half else 'single'} precision {found.disagreements} labels differ and "
            f"answers by {found.size:.2e}; rounding explains {labels} and {allowed.size:.2e}. The "
            f"file was not kept{': numbers may overflow float16' if half else ''}. Export with "
            f"--target cpu."
        )
    return found


@dataclass(frozen=True)
class _Yardstick:
    """What test (c) compares with."""

    answers: Sequence[np.ndarray]  # the model's own, a batch each
    allowed: Difference
    tie: float  # a difference that may change a label


@dataclass(frozen=True)
class _Gate:
    """One model and the batches that it and its file are compared on."""

    model: PreTrainedModel
    plan: EncoderPlan
    head: Head
    batches: Sequence[Arrays]

    @property
    def masks(self) -> list[np.ndarray]:
        """1 where a token stands, [batch, length] of every batch."""
        return [arrays["attention_mask"] for arrays in self.batches]

    def yardstick(self, disturbance: float = DISTURBANCE) -> _Yardstick:
        """The model's own answers in float32, and how far rounding alone moves them."""
        single = self.model_answers(self.model)
        floor = LOGIT_FLOOR * max(float(np.abs(each).max()) for each in single)
        found = self.difference(self.model_answers(in_double(self.model)), single, floor)
        for seed in range(DRAWS):
            with disturbed(self.model, self.plan, seed, disturbance):
                other = self.model_answers(self.model)
            found = found.worse(self.difference(other, single, floor))
        size = max(2.0 * found.size, floor)
        if not any(isinstance(module, QuantLinear) for module in self.model.modules()):
            return _Yardstick(single, Difference(0, size), tie=size)
        labels = 2 * found.disagreements + 1 if self.head.labels else 0
        return _Yardstick(single, Difference(labels, size), tie=floor)

    def difference(
        self, a: Sequence[np.ndarray], b: Sequence[np.ndarray], tie: float
    ) -> Difference:
        """Between two computations of all batches."""
        return difference(self.head, a, b, self.masks, tie)

    def check_blocks(self, tapped: Any, form: FileForm, errors: BlockErrors) -> None:  # noqa: ANN401
        """Tests (a) and (b) of a file whose inner values are outputs too."""
        for arrays in self.batches:
            feeds = self.feeds(arrays)
            check_blocks(self.model, self.plan, form, feeds, _run(tapped, feeds), errors)

    def check_answers(self, session: Any, yardstick: _Yardstick) -> Difference:  # noqa: ANN401
        """Test (c): the file beside the model, and padded texts beside the same ones alone."""
        found = [self.file_answers(session, arrays) for arrays in self.batches]
        together, alone, masks = [], [], []
        for arrays, batch in zip(self.batches, found, strict=True):
            for text, count in _padded_texts(arrays["attention_mask"]):
                part = {name: values[text, None, :count] for name, values in arrays.items()}
                alone.append(self.file_answers(session, part))
                masks.append(part["attention_mask"])
                answer = batch[text, None]
                together.append(answer[:, :count] if self.head.kind == "words" else answer)
        padding = difference(self.head, alone, together, masks, yardstick.tie)
        return padding.worse(self.difference(found, yardstick.answers, yardstick.tie))

    def feeds(self, arrays: Arrays) -> Arrays:
        """The arrays that the model takes."""
        return {name: arrays[name] for name in self.plan.arguments}

    def file_answers(self, session: Any, arrays: Arrays) -> np.ndarray:  # noqa: ANN401
        """The file's answers to one batch."""
        output = _run(session, self.feeds(arrays))[self.plan.output]
        return answers(self.head, output, arrays["attention_mask"])

    @torch.inference_mode()
    def model_answers(self, model: PreTrainedModel) -> list[np.ndarray]:
        """The answers of `model` to every batch, in float64."""
        found = []
        for arrays in self.batches:
            feeds = {name: torch.from_numpy(values) for name, values in self.feeds(arrays).items()}
            output = model(**feeds, return_dict=True)[self.plan.output].double().numpy()
            found.append(answers(self.head, output, arrays["attention_mask"]))
        return found


def _session(proto: onnx.ModelProto, optimized: bool, threads: int | None) -> Any:  # noqa: ANN401
    runtime = import_onnxruntime()
    options = session_options(threads)
    levels = runtime.GraphOptimizationLevel
    # Idle threads that spin would steal time from the torch side of the comparison.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    return open_model(proto, options)


def _run(session: Any, arrays: Arrays) -> Arrays:  # noqa: ANN401
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def _with_taps(proto: onnx.ModelProto, taps: dict[str, int]) -> onnx.ModelProto:
    """A copy of the model whose inner values `taps` (name -> element type) are outputs too."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    tapped.graph.output.extend(
        helper.make_tensor_value_info(name, kind, None) for name, kind in taps.items()
    )
    return tapped


def _padded_texts(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    counts = mask.sum(axis=1)
    yield from ((text, int(n)) for text, n in enumerate(counts) if n < mask.shape[1])
