import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from quantkit.errors import CheckpointError
from quantkit.packed import load_packed, save_packed
from quantkit.ptq import Quantized
from tests.conftest import batch_of


@pytest.fixture
def folder(quantized: Quantized, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    save_packed(quantized, tokenizer, tmp_path, max_length=64)
    return tmp_path


def test_it_loads_back_bit_for_bit(folder: Path, quantized: Quantized) -> None:
    loaded = load_packed(folder)
    before, after = quantized.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name])
    batch = batch_of(5, 17)
    with torch.no_grad():
        assert torch.equal(quantized.model(**batch).logits, loaded.model(**batch).logits)
    assert loaded.plan == quantized.plan
    assert loaded.recipe == quantized.recipe
    assert loaded.max_length == 64


def test_shared_quantizers_are_stored_once_and_shared_again(folder: Path) -> None:
    with safe_open(folder / "quantkit.safetensors", framework="pt") as file:
        names = set(file.keys())
    attention = "bert.encoder.layer.0.attention.self"
    assert f"{attention}.query.input.scale" in names
    assert f"{attention}.key.input.scale" not in names
    module = load_packed(folder).model.get_submodule(attention)
    assert module.query.input_quantizer is module.value.input_quantizer


def test_the_codes_travel_as_integers(folder: Path) -> None:
    with safe_open(folder / "quantkit.safetensors", framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert all(kind == torch.int8 for name, kind in kinds.items() if name.endswith(".codes"))
    assert not any(name.endswith("dense.weight") for name in kinds)


def test_a_plain_from_pretrained_refuses_it(folder: Path) -> None:
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_no_pickle_anywhere(folder: Path) -> None:
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt"}


def test_a_damaged_file_is_named(folder: Path) -> None:
    weights = folder / "quantkit.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"quantkit\.safetensors cannot be read"):
        load_packed(folder)


def test_a_newer_format_is_refused(folder: Path) -> None:
    metadata = json.loads((folder / "quantkit.json").read_text())
    (folder / "quantkit.json").write_text(json.dumps({**metadata, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        load_packed(folder)


def test_a_plan_that_does_not_fit_the_weights_is_refused(folder: Path) -> None:
    metadata = json.loads((folder / "quantkit.json").read_text())
    for placement in metadata["plan"]:
        if placement["module"].endswith("pooler.dense"):
            placement["bits"] = None
    (folder / "quantkit.json").write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"pooler\.dense"):
        load_packed(folder)


def test_another_folder_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a packed checkpoint"):
        load_packed(tmp_path)
