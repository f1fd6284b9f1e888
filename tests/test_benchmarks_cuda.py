"""The GPU benchmarks at toy size on the CPU: measured, resumed, prepared, trained and scored."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from quantkit.exporter import export
from quantkit.worker import read_outputs
from tests.conftest import small_bert
from tests.training import WORDS, make_rows

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cuda_measure
import cuda_prepare
import cuda_speed
import cuda_study
import cuda_training
from bert_sizes import operations
from cuda_candidates import CANDIDATES, make_candidate
from cuda_measure import given_arrays
from cuda_models import Sizes, make_folders, random_model
from cuda_tokens import load_encoded, save_encoded

RECIPE = """
name: small
task: custom
model: none
max_length: 32
data: {text: text, label: label}
finetune: {epochs: 1, batch_size: 16, lr: 1.0e-3}
calibration: {samples: 16}
qat: {epochs: 1, batch_size: 16, lr: 1.0e-4}
"""


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value


def test_candidates_are_measured_once_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_measure, "SECONDS", 0.0)  # the fewest calls
    work, names = tmp_path / "work", ["float32", "quantkit-int8", "quantkit-4bit"]
    options = ["--toy", "--device", "cpu", "--work", str(work), "--results", str(tmp_path)]
    options += ["--candidates", *names]
    make_folders(cuda_speed.TOY, work / "models")
    for name in (cuda_speed.CEILINGS, *names[1:]):  # in this process: a process takes seconds
        inside = [*options, "--worker", name, "--models", str(work / "models")]
        assert cuda_speed.main(inside) == 0
    before = _json(work / "quantkit-int8.json")
    assert cuda_speed.main([*options, "--minutes", "0"]) == 0  # no time for what is left
    assert not (tmp_path / "cuda_speed.json").exists()
    assert cuda_speed.main(options) == 0
    assert _json(work / "quantkit-int8.json") == before
    found = _json(tmp_path / "cuda_speed.json")["results"]
    assert list(found["candidates"]) == names
    assert found["device"]["name"] == "cpu"
    assert set(found["ceilings"]) >= {"float32", "bytes"}
    for entry in found["candidates"].values():
        assert set(entry["shapes"]) == {"1x16", "4x32"}
        assert entry["real"]["tokens"] == sum(cuda_speed.TOY_LENGTHS)
        assert all(shape["share_of_bytes"] > 0 for shape in entry["shapes"].values())
    whole, four = (found["candidates"][n]["weight_bytes"] for n in (names[0], names[2]))
    assert four < 0.3 * whole  # the toy's tables of positions are large


def test_files_are_measured_in_onnxruntime_where_there_are_any(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU provider and files for it; on a GPU they are the `cuda` target's."""
    monkeypatch.setattr(cuda_measure, "SECONDS", 0.0)
    work, models = tmp_path / "work", tmp_path / "models"
    model = random_model(cuda_speed.TOY)
    model.save_pretrained(models / "float")
    path = export(model, tokenizer, models / "float").path
    save_encoded(make_rows(9, 0), tmp_path / "rows.safetensors")
    inside = ["--toy", "--device", "cpu", "--work", str(work), "--models", str(models)]
    inside += ["--tokens", str(tmp_path / "rows.safetensors"), "--worker"]
    work.mkdir()
    found = {}
    for name in ("float32", "onnxruntime-fp16", "onnxruntime-int8"):
        assert cuda_speed.main([*inside, name]) == 0
        found[name] = _json(work / f"{name}.json")
    assert set(found["onnxruntime-fp16"]["shapes"]) == {"1x16", "4x32"}
    assert found["onnxruntime-fp16"]["weight_bytes"] == path.stat().st_size
    one, other = (read_outputs(work / f"{n}.npz") for n in ("float32", "onnxruntime-fp16"))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert "holds no exported model for cpu" in found["onnxruntime-int8"]["left_out"]
    with pytest.raises(LookupError, match=r"cuda"):
        make_candidate("onnxruntime-fp16", models, torch.device("cuda"))


def test_operations_and_arrays_by_hand() -> None:
    sizes = {"layers": 2, "hidden": 4, "intermediate": 8}
    # A token of a whole layer: 2 * 4 * (4 * 4 + 2 * 8), and 4 * 4 for each that it attends to. In
    # the last one: a text's query and rest 192, for each token its key and value 64, and 16.
    whole, last = 256 * 4 + 16 * (1 + 9), 2 * 192 + (64 + 16) * (1 + 3)
    assert operations(sizes, [1, 3]) == whole + last == 1888
    arrays = given_arrays([1, 3], 50)
    assert arrays["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert arrays["input_ids"][0, 1:].tolist() == [0, 0]


def test_four_bits_are_a_fifth_of_float32() -> None:
    """BERT-base's shape, by arithmetic: codes, multipliers, scales and what stays in float."""
    sizes = Sizes()
    layer = 4 * sizes.hidden**2 + 2 * sizes.hidden * sizes.intermediate
    weights = sizes.layers * layer + sizes.hidden**2 + sizes.vocab * sizes.hidden
    small = sizes.positions * sizes.hidden  # at 8 bits
    four = weights * (0.5 + 1 / 64) + small
    assert four / (4 * (weights + small)) < 0.2
    assert CANDIDATES["quantkit-4bit"][0] == "w4a8"


def test_tokens_are_read_back_as_they_were(tmp_path: Path) -> None:
    given = make_rows(7, 0, WORDS)
    save_encoded(given, tmp_path / "rows.safetensors")
    found = load_encoded(tmp_path / "rows.safetensors")
    assert (found.head, found.digest()) == (given.head, given.digest())
    assert np.array_equal(found.sources, given.sources)
    for one, other in zip(found.references(), given.references(), strict=True):
        assert np.array_equal(one, other)


@pytest.fixture
def places(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> dict[str, str]:
    """A model, a table, a study of one method, and where its parts go."""
    small_bert().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["makanan", "enak", "tidak", "buruk", "saja"]
    lines = [f"{words[at % 5]} {words[at // 5 % 5]} {at},{at % 3}" for at in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]), "utf-8")
    (tmp_path / "small.yaml").write_text(RECIPE, "utf-8")
    study = {
        "name": "toy",
        "recipes": [str(tmp_path / "small.yaml")],
        "methods": {"w8a8": {"weights.bits": 8}},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study), "utf-8")
    names = ("model", "rows.csv", "study.yaml", "prepared", "work", "results")
    return {name: str(tmp_path / name) for name in names}


def test_a_study_from_rows_to_scores(places: dict[str, str]) -> None:
    prepared, work = ["--prepared", places["prepared"]], ["--work", places["work"]]
    given = ["--model", places["model"], "--data", places["rows.csv"], "--out"]
    cuda_prepare.main(["study", places["study.yaml"], *given, places["prepared"]])
    inside = [*prepared, *work, "--model", places["model"]]
    assert cuda_study.main(inside) == 0  # a process for each unit
    files = {file.stem for file in Path(places["work"], "small-0").glob("*.npz")}
    assert files == {"float", "student", "w8a8-ptq", "w8a8-qat"}
    before = (Path(places["work"]) / "small-0" / "log.txt").stat().st_mtime_ns
    assert cuda_study.main(inside) == 0  # nothing is left to be done
    assert (Path(places["work"]) / "small-0" / "log.txt").stat().st_mtime_ns == before
    cuda_prepare.main(["score", *prepared, *work, "--results", places["results"]])
    found = _json(Path(places["results"], "toy_small_0.json"))
    assert set(found["scores"]) == files
    assert set(found["training"]) == {"float", "student", "w8a8-qat"}
    assert 0 <= found["scores"]["w8a8-ptq"]["agreement"] <= 1
    assert torch.isfinite(torch.tensor(found["training"]["w8a8-qat"]["best_score"]))


def test_a_bare_machine_is_enough() -> None:
    """It has neither datasets nor evaluate; measuring the engine takes no pydantic and no onnx."""
    bare = {
        "cuda_speed": ("pydantic", "onnx", "onnxruntime"),
        "cuda_study": (),
        "cuda_training": (),
        "cuda_files": (),
    }
    for script, others in bare.items():
        missing = dict.fromkeys(("datasets", "evaluate", *others))
        program = f"import sys; sys.modules.update({missing}); import {script}"
        folder = Path(__file__).parent.parent / "benchmarks"
        subprocess.run([sys.executable, "-c", program], check=True, cwd=folder)


def test_training_steps_are_measured_beside_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_measure, "SECONDS", 0.0)
    found = {}
    for kind in cuda_training.KINDS:
        inside = ["--toy", "--device", "cpu", "--kind", kind, "--out", str(tmp_path / kind)]
        assert cuda_training.main(inside) == 0
        found[kind] = _json(tmp_path / kind)
        assert found[kind]["ms"] > 0
        assert found[kind]["formula"]["parameters"] == found["float"]["formula"]["parameters"]
    options = cuda_training._options(["--device", "cpu", "--results", str(tmp_path)])
    assert cuda_training.report(found, options) == 0
    bars = _json(tmp_path / "cuda_training.json")["bars"]
    assert [bar["limit"] for bar in bars] == [1.1, 1.1]
