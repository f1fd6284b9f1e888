import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from quantkit.packed import save_packed
from quantkit.ptq import Quantized, quantize
from tests.conftest import ROWS, batch_of
from tests.models import small_model

PROGRAM = """
import sys, torch, transformers
import quantkit.hf
from quantkit.errors import CheckpointError
from quantkit.packed import load_packed

def load(kind, name):
    return getattr(transformers, kind).from_pretrained(f"{sys.argv[1]}/{name}")

for kind in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModel"):
    ours = load_packed(f"{sys.argv[1]}/{kind}").model.state_dict()
    theirs = load(kind, kind).state_dict()
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    print("equal", len(ours))
try:
    load("AutoModelForSequenceClassification", "albert")
except CheckpointError as problem:
    print(problem)
"""


@pytest.mark.skipif(transformers.__version__ < "5", reason="needs transformers 5")
def test_from_pretrained_loads_it_bit_for_bit_after_registration(
    quantized: Quantized, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """In a process of its own: the registration would change what other tests show."""
    models = {
        "AutoModelForTokenClassification": small_model("Roberta", "ForTokenClassification"),
        "AutoModel": small_model("DistilBert", "Model"),
        "albert": small_model("Albert"),
    }
    packed = {
        name: quantize(model, [batch_of(4, 8)], reachable_rows=ROWS)
        for name, model in models.items()
    }
    for name, each in {"AutoModelForSequenceClassification": quantized, **packed}.items():
        (tmp_path / name).mkdir()
        save_packed(each, tokenizer, tmp_path / name, max_length=60)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    lines = result.stdout.splitlines()
    assert [line[:5] for line in lines[:3]] == ["equal"] * 3, result.stderr
    assert "quantkit.load_packed" in lines[3]
