"""The parity gate: proof that an exported file computes its model's answers.

Two rounding flips can cascade: the same 8-bit model computed in float32 and in float64
already differs in a few logits. Comparing logits alone would therefore either pass broken
files or fail sound ones, so there are three tests, each with graph optimisation off and on:

(a) exact: every integer Linear, fed the file's own input codes, equals
    `float32(accumulator) * (s_a * s_w) + bias` bit for bit; where the product stays inside an
    attention operator, the integers, scales and bias stored for it equal the model's;
(b) per block, fed the file's own inputs: relative error at most 1e-5, codes apart by at
    most 1 in at most 0.1 % of places;
(c) end to end: label disagreements and the 99th percentile of |delta logit| at most twice
    those of the same torch model in float32 against float64, one row set aside; a float
    file must give every label. Of words every token is a row, of features each text's mean
    over its tokens, which has no label.

The batches are seeded token ids over the vocabulary at 3 x 3 sizes, full and padded, and
the built-in sentences. Texts of the caller's are used only if passed, and never stored.
"""

import copy
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
from quantkit.exporter.answers import Difference, answer_rows, difference
from quantkit.exporter.batches import Arrays
from quantkit.exporter.blocks import BlockErrors, block_taps, check_blocks, check_stored
from quantkit.heads import Head
from quantkit.modules import QuantLinear
from quantkit.runtime import import_onnxruntime, session_options

__all__ = ["Arrays", "ParityResult", "check_parity"]

RELATIVE_ERROR = 1e-5
CODE_DISTANCE = 1
CODE_SHARE = 1e-3
# Below this share of the largest logit a difference is float32 rounding, not a flip.
LOGIT_FLOOR = 1e-5


@dataclass(frozen=True)
class ParityResult:
    """What the gate measured: the worst over all batches and both optimisation levels."""

    products: int  # numbers compared in test (a)
    inexact_products: int
    relative_error: float
    code_distance: int
    code_share: float
    rows: int  # texts, or tokens of words, compared in test (c), per optimisation level
    disagreements: int
    disagreements_allowed: int
    logit_difference: float  # 99th percentile over rows of the largest |delta logit|
    logit_difference_allowed: float

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
    reader = _Reader(describe(model), head_of(model))
    single, double = reader.torch_rows(model, batches), reader.torch_rows(_double(model), batches)
    rounding = LOGIT_FLOOR * max(float(np.abs(rows).max()) for rows in single)
    yardstick = difference(reader.head, single, double, rounding)
    blocks, worst = BlockErrors(), Difference(0, 0.0)
    check_stored(model, reader.plan, proto, blocks)
    taps = _with_taps(proto, block_taps(reader.plan, model))
    for optimized in (False, True):
        tapped = _session(taps, optimized, threads)
        for arrays in batches:
            feeds = reader.feeds(arrays)
            check_blocks(model, reader.plan, feeds, _run(tapped, feeds), blocks)
        plain = _session(proto, optimized, threads)
        outputs = [reader.output(plain, arrays) for arrays in batches]
        rows = list(map(reader.rows, outputs, batches))
        worst = worst.worse(difference(reader.head, rows, single, rounding))
        alone, padded = reader.alone(plain, batches, outputs)
        worst = worst.worse(difference(reader.head, alone, padded, rounding))
    quantized = any(isinstance(module, QuantLinear) for module in model.modules())
    explained = 2 * yardstick.disagreements + 1 if quantized and reader.head.labels else 0
    result = ParityResult(
        **asdict(blocks),
        rows=sum(len(rows) for rows in single),
        disagreements=worst.disagreements,
        disagreements_allowed=explained,
        logit_difference=worst.size,
        logit_difference_allowed=max(2.0 * yardstick.size, rounding),
    )
    if problems := result.problems():
        raise ParityError(
            "The exported file does not compute the model's answers: "
            + "; ".join(problems)
            + ". It was not kept. Please report this with the model's config.json and the "
            "versions of onnxruntime and quantkit."
        )
    return result


@dataclass(frozen=True)
class _Reader:
    """What one model answers, by torch and by a file, as rows that can be compared."""

    plan: EncoderPlan
    head: Head

    def feeds(self, arrays: Arrays) -> Arrays:
        """The arrays that the model takes."""
        return {name: arrays[name] for name in self.plan.arguments}

    def output(self, session: Any, arrays: Arrays) -> np.ndarray:  # noqa: ANN401
        """The file's output for one batch."""
        return _run(session, self.feeds(arrays))[self.plan.output]

    def rows(self, output: np.ndarray, arrays: Arrays) -> np.ndarray:
        """The rows of one batch's output."""
        return answer_rows(self.head, output, arrays["attention_mask"])

    @torch.inference_mode()
    def torch_rows(self, model: PreTrainedModel, batches: Sequence[Arrays]) -> list[np.ndarray]:
        """Rows of every batch, in float64."""
        rows = []
        for arrays in batches:
            feeds = {name: torch.from_numpy(values) for name, values in self.feeds(arrays).items()}
            output = model(**feeds, return_dict=True)[self.plan.output]
            rows.append(self.rows(output.double().numpy(), arrays))
        return rows

    def alone(
        self,
        session: Any,  # noqa: ANN401
        batches: Sequence[Arrays],
        outputs: Sequence[np.ndarray],
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Rows of padded texts run alone and without padding, beside those within their batch."""
        alone, together = [], []
        for arrays, output in zip(batches, outputs, strict=True):
            for text, count in _padded_texts(arrays["attention_mask"]):
                padded = {name: values[text, None] for name, values in arrays.items()}
                single = {name: values[:, :count] for name, values in padded.items()}
                alone.append(self.rows(self.output(session, single), single))
                together.append(self.rows(output[text, None], padded))
        return alone, together


def _double(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).double()


def _session(proto: onnx.ModelProto, optimized: bool, threads: int | None) -> Any:  # noqa: ANN401
    runtime = import_onnxruntime()
    options = session_options(threads)
    levels = runtime.GraphOptimizationLevel
    # Idle threads that spin would steal time from the torch side of the comparison.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    return runtime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


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
