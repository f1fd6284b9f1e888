"""The modules of `evaluate`, without a download."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.heads import Head
from quantkit.metrics import Aspects, Chunks, Classification, scores

LABELS = ["neg", "pos"]


def test_classification(tmp_path: Path) -> None:
    references, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    module = Classification(cache_dir=str(tmp_path), keep_in_memory=True)
    found = module.compute(references=references, predictions=predictions, labels=LABELS)
    expected = scores(Head("classification", tuple(LABELS)), references, predictions)
    each = {"precision_neg": 1.0, "recall_neg": 0.5, "f1_neg": 2 / 3}
    each |= {"precision_pos": 2 / 3, "recall_pos": 1.0, "f1_pos": 0.8}
    assert found == pytest.approx(expected | each)
    for rows in (slice(0, 1), slice(1, 4)):
        module.add_batch(references=references[rows], predictions=predictions[rows])
    assert module.compute(labels=LABELS) == found


def test_aspects(tmp_path: Path) -> None:
    references, predictions = [[0, 1], [1, 1]], [[0, 1], [1, 0]]
    module = Aspects(cache_dir=str(tmp_path), keep_in_memory=True)
    found = module.compute(references=references, predictions=predictions, labels=LABELS)
    head = Head("aspects", tuple(LABELS), ("a", "b"))
    assert found.items() >= scores(head, np.array(references), np.array(predictions)).items()
    assert found["f1_neg"] == pytest.approx(2 / 3)
    arrays = {"references": np.array(references), "predictions": np.array(predictions)}
    assert module.compute(**arrays, labels=LABELS) == found


def test_chunks(tmp_path: Path) -> None:
    references = [["B-PER", "I-PER", "O"], ["B-$$$"], []]
    predictions = [["B-PER", "O", "O"], ["I-$$$"], []]
    module = Chunks(cache_dir=str(tmp_path), keep_in_memory=True)
    found = module.compute(references=references, predictions=predictions)
    mean = {"chunk_precision": 0.5, "chunk_recall": 0.5, "chunk_f1": 0.5, "micro_f1": 0.5}
    each = {f"{part}_$$$": 1.0 for part in ("precision", "recall", "f1")}
    each |= {f"{part}_PER": 0.0 for part in ("precision", "recall", "f1")}
    assert found == pytest.approx(mean | each | {"accuracy": 0.5})


def test_tags_without_a_type_have_no_scores_of_their_own(tmp_path: Path) -> None:
    module = Chunks(cache_dir=str(tmp_path), keep_in_memory=True)
    found = module.compute(references=[["B", "I", "O", "I"]], predictions=[["B", "I", "O", "O"]])
    assert found["chunk_f1"] == found["micro_f1"] == pytest.approx(2 / 3)
    assert not any(name.endswith("_") for name in found)
