"""The promise of training: what was trained is what the file computes."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import quantkit
from quantkit.encoder import describe
from quantkit.exporter import export
from quantkit.ptq import Quantized
from quantkit.qat import Lsq, pack, prepare
from quantkit.tokenization import Inputs
from tests.conftest import batch_of
from tests.models import answers_of, small_model
from tests.test_qat_identity import SETTINGS, made, trained_a_bit

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TEXTS = ["makanan enak sekali", "pelayanan buruk", "biasa saja tidak enak makanan", "enak"]


def _trained(family: str, name: str) -> tuple[PreTrainedModel, Quantized]:
    model = small_model(family)
    start = made(model, SETTINGS[name])
    trained = trained_a_bit(prepare(model, start, Lsq()), steps=10)
    return trained, start


@pytest.mark.parametrize(
    ("family", "name"), [("Bert", "w8a8"), ("Bert", "w4a8"), ("Albert", "w4a8"), ("Bert", "w4a4")]
)
def test_the_file_answers_as_the_model_was_trained(
    family: str, name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trained, start = _trained(family, name)
    end = pack(trained, start)
    batch = batch_of(4, 12, seed=9)
    # Training moved the answers much farther than the file is from them.
    moved = (answers_of(trained, batch) - answers_of(start.model, batch)).abs().max()
    export(end.model, tokenizer, tmp_path, max_length=32)  # through the parity gate
    outputs = quantkit.load(tmp_path).outputs(Inputs(TEXTS))
    alone = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    plan = describe(trained)
    with torch.no_grad():
        expected = torch.cat([trained(**{n: t[n] for n in plan.arguments}).logits for t in alone])
    difference = np.abs(outputs - expected.numpy()).max()
    assert difference < 1e-3 * np.abs(expected.numpy()).max()
    assert difference < 0.1 * float(moved)


# torch's own: it makes an instance to look at the function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["w4a8", "one level, tokens"])
def test_torch_compile_makes_one_graph_with_the_same_gradients(name: str) -> None:
    model = small_model("Bert", layers=1)
    trained = prepare(model, made(model, SETTINGS[name]), Lsq())
    attention: Any = trained.get_submodule("bert.encoder.layer.0.attention.self")
    linears = [attention.query, attention.key, attention.value]
    leaves = [p for linear in linears for p in linear.parameters()]

    def product(x: Tensor) -> Tensor:
        return torch.stack([linear(x) for linear in linears])

    # "aot_eager" traces forward and backward as inductor does, and needs no C compiler.
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 5, 48)
    expected, found = (call(x) for call in (product, compiled))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_the_readme_example_trains_and_exports(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_model("Bert").save_pretrained("my-model")
    tokenizer.save_pretrained("my-model")
    first, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = [block for block in others if "prepare(" in block]
    names: dict[str, object] = {}
    with redirect_stdout(io.StringIO()):
        exec(compile(first, "README.md", "exec"), names)
        names["labels"] = torch.tensor([0, 2])
        exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "my-model-qat" / "onnx" / "model_quantized.onnx").is_file()
