"""Exported folders made by hand: each token has a row of numbers, and that is the model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedTokenizerBase

from quantkit.heads import Head

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HIDDEN = 6  # of a model for features

HEADS = {
    "classification": Head("classification", ("positive", "neutral", "negative")),
    "aspects": Head("aspects", ("positive", "negative"), ("rasa", "harga")),
    "multilabel": Head("multilabel", ("marah", "senang", "takut")),
    "regression": Head("regression"),
    "words": Head("words", ("O", "B-PER", "I-PER", "B-LOC")),
    "features": Head("features"),
}


def table_of(head: Head, rows: int, seed: int = 0) -> np.ndarray:
    """The numbers of each token, float32 [rows, outputs]."""
    width = head.outputs or HIDDEN
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32) * 3


def write_folder(
    folder: Path,
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
    *,
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    inputs: Sequence[str] = INPUTS,
    masked: bool = True,
    max_length: int = 64,
    seed: int = 0,
) -> Path:
    """An exported folder of a model that says of a token its row of `table_of`.

    Of a whole text it says the mean over its tokens, over its padding too unless `masked`.
    `metadata` replaces what an exported file has.
    """
    table = table_of(head, len(tokenizer), seed)
    model = _model(head, table, inputs, masked)
    known = {"quantkit.head": json.dumps(head.to_json()), "quantkit.max_length": str(max_length)}
    helper.set_model_props(model, dict(known if metadata is None else metadata))
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, folder / "onnx" / "model.onnx")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _model(head: Head, table: np.ndarray, inputs: Sequence[str], masked: bool) -> onnx.ModelProto:
    output = "last_hidden_state" if head.kind == "features" else "logits"
    each = head.kind in ("words", "features")
    shape = ["batch", "length", table.shape[1]] if each else ["batch", table.shape[1]]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [output if each else "tokens"])]
    if not each and masked:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["flat"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["flat", "last"], ["mask"]),
            helper.make_node("Mul", ["tokens", "mask"], ["seen"]),
            helper.make_node("ReduceSum", ["seen", "middle"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=0),
            helper.make_node("Div", ["sum", "count"], [output]),
        ]
    elif not each:
        nodes.append(helper.make_node("ReduceMean", ["tokens", "middle"], [output], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)
