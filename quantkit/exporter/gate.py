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
    file must give every label.

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

from quantkit.encoder import describe
from quantkit.errors import ParityError
from quantkit.exporter.blocks import BlockErrors, block_taps, check_blocks, check_stored
from quantkit.modules import QuantLinear
from quantkit.runtime import import_onnxruntime, session_options

__all__ = ["Arrays", "ParityResult", "check_parity", "gate_batches"]

Arrays = dict[str, np.ndarray]

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
    rows: int  # texts compared in test (c), per optimisation level
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
        batches: int64 arrays [batch, length] by input name; see `gate_batches`.
        threads: of each session; default: what the CPU quota gives.

    Raises:
        ParityError: a test failed; the message says which and by how much.
    """
    plan = describe(model)
    single, double = _torch_logits(model, batches), _torch_logits(_double(model), batches)
    yardstick = _differences(single, double)
    blocks = BlockErrors()
    check_stored(model, plan, proto, blocks)
    worst = (0, 0.0)
    for optimized in (False, True):
        plain = _session(proto, optimized, threads)
        tapped = _session(_with_taps(proto, block_taps(plan, model)), optimized, threads)
        for arrays in batches:
            values = _run(tapped, arrays)
            check_blocks(model, plan, arrays, values, blocks)
        answers = [_run(plain, arrays)["logits"] for arrays in batches]
        worst = _worse(worst, _differences(answers, single))
        alone, padded = _alone(plain, batches, answers)
        worst = _worse(worst, _differences(alone, padded))
    quantized = any(isinstance(module, QuantLinear) for module in model.modules())
    floor = LOGIT_FLOOR * max(float(np.abs(logits).max()) for logits in single)
    result = ParityResult(
        products=blocks.products,
        inexact_products=blocks.inexact_products,
        relative_error=blocks.relative_error,
        code_distance=blocks.code_distance,
        code_share=blocks.code_share,
        rows=sum(len(logits) for logits in single),
        disagreements=worst[0],
        disagreements_allowed=2 * yardstick[0] + 1 if quantized else 0,
        logit_difference=worst[1],
        logit_difference_allowed=max(2.0 * yardstick[1], floor),
    )
    if problems := result.problems():
        raise ParityError(
            "The exported file does not compute the model's answers: "
            + "; ".join(problems)
            + ". It was not kept. Please report this with the model's config.json and the "
            "versions of onnxruntime and quantkit."
        )
    return result


def gate_batches(
    rows: int, max_length: int, *, sentences: Sequence[Arrays] = (), seed: int = 0
) -> list[Arrays]:
    """Seeded token ids below `rows`: batches 1, 3, 8 x three lengths, full and padded.

    `sentences` are appended as they are. The longest batches have `max_length` tokens, at
    most 128.
    """
    generator = np.random.default_rng(seed)
    longest = min(max_length, 128)
    lengths = sorted({min(8, longest), max(8, longest // 4), longest})
    batches = []
    for batch in (1, 3, 8):
        for length in lengths:
            for padded in (False, True):
                ids = generator.integers(0, rows, (batch, length))
                counts = generator.integers(2, length + 1, batch) if padded else [length] * batch
                mask = (np.arange(length)[None, :] < np.asarray(counts)[:, None]).astype(np.int64)
                types = (np.arange(length)[None, :] > length // 2) * mask
                batches.append(
                    {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}
                )
    return [*batches, *sentences]


def _double(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).double()


def _torch_logits(model: PreTrainedModel, batches: Sequence[Arrays]) -> list[np.ndarray]:
    with torch.inference_mode():
        return [
            model(**{name: torch.from_numpy(values) for name, values in arrays.items()})
            .logits.double()
            .numpy()
            for arrays in batches
        ]


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


def _differences(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> tuple[int, float]:
    """Label disagreements, and the 99th percentile of a row's largest difference.

    The worst row is set aside: with two rows of rounding flips in a hundred, which of two
    equally sound computations meets them is chance.
    """
    first, second = np.concatenate(a), np.concatenate(b)
    rows = np.sort(np.abs(first - second).max(axis=1))
    disagreements = int((first.argmax(1) != second.argmax(1)).sum())
    return disagreements, float(np.quantile(rows[:-1], 0.99)) if len(rows) > 1 else 0.0


def _worse(a: tuple[int, float], b: tuple[int, float]) -> tuple[int, float]:
    return max(a[0], b[0]), max(a[1], b[1])


def _alone(
    session: Any,  # noqa: ANN401
    batches: Sequence[Arrays],
    answers: Sequence[np.ndarray],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Answers of padded rows run alone and without padding, beside those within their batch."""
    alone, together = [], []
    for arrays, logits in zip(batches, answers, strict=True):
        for row, count in _padded_rows(arrays["attention_mask"]):
            single = {name: values[row : row + 1, :count] for name, values in arrays.items()}
            alone.append(_run(session, single)["logits"])
            together.append(logits[row : row + 1])
    return alone, together


def _padded_rows(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    counts = mask.sum(axis=1)
    yield from ((row, int(n)) for row, n in enumerate(counts) if n < mask.shape[1])
