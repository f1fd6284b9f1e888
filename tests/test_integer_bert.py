"""The exported file against a NumPy forward pass that was written from the definitions alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.metrics import f1_score
from transformers import PreTrainedTokenizerBase

from quantkit.data.builtin import load_builtin
from quantkit.exporter import export
from quantkit.packed import save_packed
from quantkit.ptq import quantize
from quantkit.recipe import Recipe
from quantkit.runtime import session_options
from tests.conftest import ROWS, batch_of, small_bert
from tests.interop import four_bits
from tests.reference.integer_bert import LAYER, IntegerBert, gelu, read

LAYERS, HEADS = 2, 4
RECIPES = {"w8a8": Recipe(name="w8a8", task="none", model="none"), "w4a8": four_bits()}
SHAPES = ((1, 3), (4, 17), (8, 48))
SCORED = 200  # texts


@pytest.fixture(scope="module", params=RECIPES)
def made(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[IntegerBert, Path]:
    """The reference by the packed checkpoint, and the file with every product as a value."""
    folder, recipe = tmp_path_factory.mktemp(request.param), RECIPES[request.param]
    batches = [batch_of(8, 12, seed=1), batch_of(4, 30, seed=2)]
    result = quantize(small_bert(), batches, recipe=recipe, reachable_rows=ROWS)
    save_packed(result, tokenizer, folder, max_length=64)
    exported = export(result.model, tokenizer, folder, recipe=recipe)
    return IntegerBert(read(folder / "quantkit.safetensors"), LAYERS, HEADS), exported.path


def _batches() -> Iterator[dict[str, np.ndarray]]:
    for at, (size, length) in enumerate(SHAPES):
        batch = {name: values.numpy() for name, values in batch_of(size, length, seed=at).items()}
        batch["token_type_ids"][:, length // 2 :] = 1
        batch["attention_mask"][0, length // 2 + 1 :] = 0
        yield batch


def _values(path: Path, optimized: bool) -> Iterator[tuple[dict[str, np.ndarray], ...]]:
    """Every named value of the file on each batch, and the batch."""
    proto = onnx.load(path)
    names = {output: TensorProto.FLOAT for node in proto.graph.node for output in node.output}
    wanted = {
        name: TensorProto.UINT8 if name.endswith("/codes") else kind
        for name, kind in names.items()
        if name.endswith(("/codes", "/product", "/context", "LayerNorm"))
    }
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, kind, None) for name, kind in wanted.items()
    )
    options = session_options(1)
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [value.name for value in session.get_outputs()]
    for batch in _batches():
        yield dict(zip(outputs, session.run(outputs, batch), strict=True)), batch


@pytest.mark.parametrize("optimized", [False, True])
def test_every_integer_product_is_the_reference_bit_for_bit(
    made: tuple[IntegerBert, Path], optimized: bool
) -> None:
    """Test (a) of the gate, without the model: codes of the file, integers of the checkpoint."""
    reference, path = made
    seen = 0
    for values, _ in _values(path, optimized):
        for at in range(LAYERS):
            for name in _linears(at):
                codes = values[f"{name[0]}/codes"]
                parts = [reference.product(part, codes, name[0]) for part in name]
                np.testing.assert_array_equal(
                    values[f"{name[0]}/product"], np.concatenate(parts, -1)
                )
                seen += 1
    assert seen == 4 * LAYERS * len(SHAPES)


@pytest.mark.parametrize("optimized", [False, True])
def test_every_block_is_the_reference_on_the_files_own_inputs(
    made: tuple[IntegerBert, Path], optimized: bool
) -> None:
    """Test (b) of the gate: 1e-5 relative, codes apart by 1 in one place of a thousand at most."""
    reference, path = made
    for values, batch in _values(path, optimized):
        hidden = values["bert.embeddings.LayerNorm"]
        _near(hidden, reference.embedded(batch["input_ids"], batch["token_type_ids"]))
        for at in range(LAYERS):
            name = f"{LAYER}.{at}"
            inside, out = f"{name}.attention.self.query", f"{name}.attention.output"
            _same_codes(values[f"{inside}/codes"], reference.codes(inside, hidden))
            context = values[f"{out}.dense/context"]
            merged = values[f"{inside}/product"]
            expected = reference.attention(merged, batch["attention_mask"])
            if at + 1 == LAYERS:  # the head reads the first token of each text alone
                expected, hidden = expected[:, :1], hidden[:, :1]
            _near(context, expected)
            _same_codes(values[f"{out}.dense/codes"], reference.codes(f"{out}.dense", context))
            middle = values[f"{out}.LayerNorm"]
            total = values[f"{out}.dense/product"] + hidden
            _near(middle, reference.norm(f"{out}.LayerNorm", total))
            inner = f"{name}.intermediate.dense"
            _same_codes(values[f"{inner}/codes"], reference.codes(inner, middle))
            active, last = gelu(values[f"{inner}/product"]), f"{name}.output"
            _same_codes(values[f"{last}.dense/codes"], reference.codes(f"{last}.dense", active))
            hidden = values[f"{last}.LayerNorm"]
            total = values[f"{last}.dense/product"] + middle
            _near(hidden, reference.norm(f"{last}.LayerNorm", total))


def test_end_to_end_the_file_differs_no_more_than_rounding_moves_the_reference(
    made: tuple[IntegerBert, Path],
) -> None:
    """Test (c): float32 against float64 of the reference itself is the yardstick."""
    reference, path = made
    double = replace(reference, dtype=np.float64)
    for values, batch in _values(path, optimized=True):
        arguments = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        single = reference.logits(*arguments)
        allowed = 2 * float(np.abs(double.logits(*arguments) - single).max())
        scale = float(np.abs(single).max())
        assert np.abs(values["logits"] - single).max() <= max(allowed, 0.02 * scale)


def test_the_float_twin_gives_every_digit_of_macro_f1(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small_bert()
    texts = load_builtin().splits["train"]["text"][:SCORED]
    with torch.no_grad():  # a random model gives one label to all texts: centre its logits
        batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        model.classifier.bias.sub_(model(**batch).logits.mean(0))
    model.save_pretrained(tmp_path / "float")
    path = export(model, tokenizer, tmp_path / "float").path
    reference = IntegerBert(read(tmp_path / "float" / "model.safetensors"), LAYERS, HEADS)
    session = onnxruntime.InferenceSession(
        str(path), session_options(1), providers=["CPUExecutionProvider"]
    )
    rows = load_builtin().splits["test"][:SCORED]
    found: list[list[int]] = [[], []]
    for text in rows["text"]:
        batch = {
            name: np.array([ids], dtype=np.int64)
            for name, ids in tokenizer(text, truncation=True, max_length=64).items()
        }
        arguments = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        both = session.run(["logits"], batch)[0], reference.logits(*arguments)
        np.testing.assert_allclose(both[1], both[0], rtol=1e-4, atol=1e-4)
        for labels, logits in zip(found, both, strict=True):
            labels.append(int(logits.argmax()))
    assert len(set(found[0])) > 1
    scores = [f1_score(rows["label"], labels, average="macro") for labels in found]
    assert scores[0] == scores[1]


def _linears(layer: int) -> list[tuple[str, ...]]:
    """The Linears that read one tensor, for each of a layer's four."""
    name = f"{LAYER}.{layer}"
    inside = tuple(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
    rest = ("attention.output.dense", "intermediate.dense", "output.dense")
    return [inside, *((f"{name}.{part}",) for part in rest)]


def _near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def _same_codes(found: np.ndarray, expected: np.ndarray) -> None:
    distance = np.abs(found.astype(np.int64) - expected)
    assert distance.max() <= 1
    assert max(0, int((distance > 0).sum()) - 1) <= 1e-3 * distance.size
