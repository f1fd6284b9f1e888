"""The recurrent baselines as a graph of ONNX's own `RNN` and `LSTM` operators."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from quantkit.checkpoint import label_names
from quantkit.errors import ParityError
from quantkit.exporter.gate import Arrays, ParityResult
from quantkit.exporter.graph import GraphWriter
from quantkit.exporter.saving import open_model
from quantkit.recurrent import Direction, RecurrentForSequenceClassification
from quantkit.runtime import import_onnxruntime, session_options

__all__ = ["INPUTS", "build", "check"]

INPUTS = ("input_ids", "attention_mask")

RELATIVE_ERROR = 1e-5  # of the largest logit: float32 rounding over a hundred steps

_OPERATORS = {"rnn": "RNN", "lstm": "LSTM"}
# Blocks of ours in ONNX's order: an LSTM's input, output, forget, candidate.
_ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2)}


def build(
    model: RecurrentForSequenceClassification, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The ONNX model of a classifier, with dynamic batch and length."""
    graph = GraphWriter()
    ids, lengths = _what_is_read(graph, model)
    # The operators want [steps, batch, ...], and ids are smaller to turn than vectors.
    table = "recurrent.embeddings.word_embeddings.weight"
    steps = graph.add("Transpose", ids, perm=(1, 0))
    x = graph.add("Gather", graph.constant(table, _array(model.get_parameter(table))), steps)
    last, width = "", 0
    for index, layer in enumerate(model.recurrent.layers):
        if width:
            x = _side_by_side(graph, x, (0, 2, 1, 3), width)
        directions = [module for module in layer.children() if isinstance(module, Direction)]
        x, last = _layer(graph, directions, f"recurrent.layers.{index}", x, lengths)
        width = sum(direction.units for direction in directions)
    _classifier(graph, model.classifier, _side_by_side(graph, last, (1, 0, 2), width))
    return graph.finish(
        dict.fromkeys(INPUTS, ("batch", "length")),
        "logits",
        ("batch", len(label_names(model))),
        metadata,
    )


def check(
    model: RecurrentForSequenceClassification,
    proto: onnx.ModelProto,
    batches: Sequence[Arrays],
    *,
    threads: int | None = None,
) -> ParityResult:
    """Compare the file's logits with torch's, with graph optimisation off and on.

    There are no integers here, so one test from end to end does: every label is the model's,
    and no logit is further off than 1e-5 of the largest one.

    Args:
        model: in eval mode and float32.
        proto: the exported model.
        batches: int64 arrays [batch, length] by input name; names it does not read are ignored.
        threads: of each session; default: what the CPU quota gives.

    Raises:
        ParityError: says how many labels differ and how far the logits are off.
    """
    expected = np.concatenate([_torch_logits(model, arrays) for arrays in batches])
    difference, disagreements = 0.0, 0
    for optimized in (False, True):
        session = _session(proto, optimized, threads)
        feeds = ({name: arrays[name] for name in INPUTS} for arrays in batches)
        found = np.concatenate([session.run(["logits"], feed)[0] for feed in feeds])
        # Kept as it is if NaN, which no bound below lets pass.
        difference = float(np.maximum(difference, np.abs(found - expected).max()))
        disagreements = max(disagreements, int((found.argmax(1) != expected.argmax(1)).sum()))
    largest = float(np.abs(expected).max())
    if disagreements or not difference <= RELATIVE_ERROR * largest:
        raise ParityError(
            f"The exported file does not compute the model's answers: {disagreements} of "
            f"{len(expected)} labels differ, and logits by up to {difference:.2e} where "
            f"{RELATIVE_ERROR * largest:.2e} is explained by float rounding. It was not kept. "
            f"Please report this with the model's config.json and the versions of onnxruntime "
            f"and quantkit."
        )
    return ParityResult(
        products=0,
        inexact_products=0,
        relative_error=difference / largest if largest else 0.0,
        code_distance=0,
        code_share=0.0,
        rows=len(expected),
        disagreements=disagreements,
        disagreements_allowed=0,
        logit_difference=difference,
        logit_difference_allowed=RELATIVE_ERROR * largest,
    )


def _what_is_read(graph: GraphWriter, model: RecurrentForSequenceClassification) -> tuple[str, str]:
    """Ids [batch, steps], and int32 steps of each row [batch], "" where all are read."""
    config = model.config
    if config.padding == "masked":
        one = graph.constant("one", np.array([1]))
        counts = graph.add("ReduceSum", "attention_mask", one, keepdims=0)
        return "input_ids", graph.add("Cast", counts, to=onnx.TensorProto.INT32)
    pad = graph.constant("pad", np.array(config.pad_token_id or 0))
    reads = graph.add("Cast", "attention_mask", to=onnx.TensorProto.BOOL)
    ids = graph.add("Where", reads, "input_ids", pad)
    length = graph.constant("padded_length", np.array([config.padded_length]))
    behind = graph.constant("behind", np.array([0, 0, 0, config.padded_length]))
    long = graph.add("Pad", ids, behind, pad)
    start, axis = graph.constant("start", np.array([0])), graph.constant("axis", np.array([1]))
    return graph.add("Slice", long, start, length, axis), ""


def _layer(
    graph: GraphWriter, directions: Sequence[Direction], name: str, x: str, lengths: str
) -> tuple[str, str]:
    """All states [steps, directions, batch, units] and the last ones [directions, batch, units]."""
    cell, units = directions[0].cell, directions[0].units
    recurrent = [_blocks(direction.recurrent_kernel, cell) for direction in directions]
    biases = [_blocks(direction.bias, cell) for direction in directions]
    states, last, *_ = graph.add_many(
        _OPERATORS[cell],
        x,
        graph.constant(f"{name}.kernel", np.stack([_blocks(d.kernel, cell) for d in directions])),
        graph.constant(f"{name}.recurrent_kernel", np.stack(recurrent)),
        # ONNX has a second bias, of the recurrent product; Keras and this model have not.
        graph.constant(f"{name}.bias", np.stack([np.append(b, np.zeros_like(b)) for b in biases])),
        lengths,
        names=["", ""],
        hidden_size=units,
        direction="bidirectional" if len(directions) == 2 else "forward",
    )
    return states, last


def _side_by_side(graph: GraphWriter, states: str, order: Sequence[int], width: int) -> str:
    """The states of both directions in one axis: [..., directions, batch, units] before."""
    turned = graph.add("Transpose", states, perm=order)
    # No -1 for the width: ONNX cannot infer it where a batch has no tokens at all.
    shape = [0] * (len(order) - 2) + [width]
    name = f"shape_{len(shape)}_{width}"
    return graph.add("Reshape", turned, graph.constant(name, np.array(shape)))


def _classifier(graph: GraphWriter, linear: nn.Linear, state: str) -> None:
    weight = graph.constant("classifier.weight", _array(linear.weight).T)
    bias = graph.constant("classifier.bias", _array(linear.bias))
    graph.add("Add", graph.add("MatMul", state, weight), bias, name="logits")


def _blocks(weight: Tensor, cell: str) -> np.ndarray:
    """The rows of a weight, gate by gate, in ONNX's order."""
    order = _ORDER[cell]
    parts = np.split(_array(weight), len(order))
    return np.concatenate([parts[at] for at in order])


def _array(tensor: Tensor) -> np.ndarray:
    values: np.ndarray = tensor.detach().cpu().numpy()
    return values


def _torch_logits(model: RecurrentForSequenceClassification, arrays: Arrays) -> np.ndarray:
    with torch.inference_mode():
        logits = model(**{name: torch.from_numpy(arrays[name]) for name in INPUTS}).logits
    return _array(logits)


def _session(proto: onnx.ModelProto, optimized: bool, threads: int | None) -> Any:  # noqa: ANN401
    runtime = import_onnxruntime()
    options = session_options(threads)
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    return open_model(proto, options)
