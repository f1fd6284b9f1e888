import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import quantkit
from quantkit.errors import CheckpointError
from quantkit.heads import Head
from quantkit.runtime import Session, load
from tests.tiny_onnx import HEADS, table_of, write_folder

TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja", "tidak enak " * 60, "enak"]

Open = Callable[..., Session]


@pytest.fixture
def opened(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Open:
    """A session of a model made by hand for a kind; options as of `write_folder`."""

    def open_kind(kind: str, **options: Any) -> Session:  # noqa: ANN401
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return load(write_folder(place, HEADS[kind], tokenizer, **options))

    return open_kind


def test_older_files_name_their_labels_alone(opened: Open) -> None:
    session = opened("classification", metadata={"quantkit.labels": "baik\nbiasa\nburuk"})
    assert session.head == Head("classification", ("baik", "biasa", "buruk"))
    assert session.max_length == 512


def test_foreign_files_are_described_by_their_config(opened: Open) -> None:
    names = {"0": "baik", "2": "buruk", "1": "biasa"}
    config = {"id2label": names, "max_position_embeddings": 40}
    session = opened("classification", metadata={}, config=config)
    assert session.head == Head("classification", ("baik", "biasa", "buruk"))
    assert session.max_length == 40
    config = {"id2label": names, "max_position_embeddings": 514}
    assert opened("classification", metadata={}, config=config).max_length == 512
    assert len(session.predict(TEXTS)) == 5
    head = HEADS["words"]
    config = {"id2label": names, "quantkit_head": head.to_json()}
    assert opened("words", metadata={}, config=config).head == head


def test_a_file_gets_the_inputs_it_declares(opened: Open) -> None:
    session = opened("classification", inputs=("input_ids", "attention_mask"))
    np.testing.assert_array_equal(
        session.logits(TEXTS), opened("classification").logits(TEXTS), strict=True
    )


def test_padding_is_what_the_file_says(opened: Open, tokenizer: PreTrainedTokenizerBase) -> None:
    head = HEADS["regression"]
    table = table_of(head, len(tokenizer))
    said = {"quantkit.head": json.dumps(head.to_json()), "quantkit.pad_token_id": "1"}
    for metadata_, padding in ((said, 1), (None, 0)):
        session = opened("regression", metadata=metadata_, masked=False)
        short = session.logits(["enak", "enak sekali"])[0]
        ids = [*tokenizer("enak").input_ids, padding]
        np.testing.assert_allclose(short, table[ids].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(metadata={}), r"does not say what it answers.*id2label.*config\.json"),
        (dict(metadata={"quantkit.head": '{"kind": "poem"}'}), "kind 'poem'"),
        (dict(metadata={"quantkit.head": '{"kind": "features"}'}), "no output 'last_hidden_state'"),
        (dict(metadata={"quantkit.labels": "ya\ntidak"}), "3 logits, and there are names for 2"),
        (dict(inputs=("input_ids", "attention_mask", "position_ids")), "inputs position_ids"),
        (
            dict(metadata={"quantkit.labels": "a\nb\nc", "quantkit.target": "cuda"}),
            "was exported for cuda.*--target cpu",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    options: dict[str, Any], message: str, opened: Open
) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened("classification", **options)


def test_a_file_beside_its_tokenizer_can_be_opened(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = write_folder(tmp_path / "made", HEADS["classification"], tokenizer)
    (made / "onnx" / "model.onnx").rename(made / "model.onnx")
    assert quantkit.load(made / "model.onnx").head == HEADS["classification"]


def test_a_folder_without_a_tokenizer_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = write_folder(tmp_path / "made", HEADS["classification"], tokenizer)
    (made / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"made holds no tokenizer\.json"):
        quantkit.load(made)


def test_a_folder_without_onnx_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantkit export"):
        quantkit.load(tmp_path)


def test_a_damaged_file_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    made = write_folder(tmp_path / "made", HEADS["classification"], tokenizer)
    file = made / "onnx" / "model.onnx"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be opened"):
        quantkit.load(made)
