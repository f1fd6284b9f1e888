"""Bound tensors against plain runs, on the CPU provider; a GPU's graphs need a GPU."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

import quantkit
from quantkit.bound import MOST_GRAPHS, BoundBackend, rounded
from quantkit.errors import CheckpointError, RecipeError
from quantkit.exporter import export
from quantkit.runtime import OnnxBackend, find_onnx
from tests.tiny_onnx import HEADS, write_folder


def arrays_of(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Texts of different lengths, padded on the right."""
    shape = len(lengths), max(lengths)
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, 40, shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def both(file: Path, output: str) -> tuple[BoundBackend, OnnxBackend]:
    inference = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    bound = BoundBackend(inference, output, device="cpu", longest=60, padding=0)
    return bound, OnnxBackend(inference, output)


def test_bound_tensors_give_the_same_answers(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    export(model, tokenizer, tmp_path, max_length=60)
    bound, plain = both(find_onnx(tmp_path), "logits")
    # A size comes again, after a fuller one: nothing of that may be left in its place.
    for seed, lengths in enumerate([[3, 9, 1], [60], [11, 12, 13], [2], [1] * 9, [3, 9, 1]]):
        arrays = arrays_of(lengths, seed)
        found, wanted = bound.run(arrays), plain.run(arrays)
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(np.abs(wanted).max()))
    assert len(bound._places) == 4  # 3x16 serves three of the six batches


@pytest.mark.parametrize("kind", ["words", "features"])
def test_outputs_of_tokens_are_cut(
    kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / kind, HEADS[kind], tokenizer)
    bound, plain = both(find_onnx(folder), "logits" if kind == "words" else "last_hidden_state")
    arrays = arrays_of([5, 9, 2, 2, 1, 1, 1, 1, 3])
    np.testing.assert_array_equal(bound.run(arrays), plain.run(arrays))


def test_a_prepared_batch_is_computed_again(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    bound, plain = both(
        find_onnx(write_folder(tmp_path / "tiny", HEADS["regression"], tokenizer)), "logits"
    )
    arrays = arrays_of([8, 8])
    step = bound.prepared(arrays)
    place = bound._places[2, 8]
    place.output.update_inplace(np.zeros((2, 1), np.float32))
    step()
    np.testing.assert_array_equal(place.output.numpy(), plain.run(arrays))


def test_more_sizes_than_graphs_are_served(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    bound, plain = both(
        find_onnx(write_folder(tmp_path / "tiny", HEADS["regression"], tokenizer)), "logits"
    )
    for texts in (*range(1, 9), *range(10, 17, 2)):
        for length in range(8, 57, 8):
            arrays = arrays_of([length] * texts)
            np.testing.assert_allclose(bound.run(arrays), plain.run(arrays), atol=1e-5)
    assert len(bound._places) == MOST_GRAPHS


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((1, 1, 512), (1, 8)),
        ((5, 33, 512), (5, 40)),
        ((33, 129, 512), (40, 160)),
        ((9, 384, 512), (10, 384)),
        ((1, 57, 60), (1, 60)),
    ],
)
def test_sizes_by_hand(given: tuple[int, int, int], wanted: tuple[int, int]) -> None:
    assert rounded(*given) == wanted
    assert rounded(*wanted, given[2]) == wanted


def test_graphs_are_for_gpus_and_known_sizes(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "tiny", HEADS["words"], tokenizer)
    with pytest.raises(RecipeError, match=r"graphs are CUDA's"):
        quantkit.load(folder, graphs=True)
    model = onnx.load(find_onnx(folder))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "unknown"
    onnx.save(model, find_onnx(folder))
    with pytest.raises(CheckpointError, match=r"sizes that follow from the inputs'"):
        both(find_onnx(folder), "logits")
