import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from quantkit.packed import save_packed
from quantkit.ptq import Quantized

PROGRAM = """
import sys, torch
import quantkit.hf
from quantkit.packed import load_packed
from transformers import AutoModelForSequenceClassification

ours = load_packed(sys.argv[1]).model.state_dict()
theirs = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).state_dict()
assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
for name, tensor in ours.items():
    assert tensor.dtype == theirs[name].dtype, name
    assert torch.equal(tensor, theirs[name]), name
print("equal", len(ours))
"""


@pytest.mark.skipif(transformers.__version__ < "5", reason="needs transformers 5")
def test_from_pretrained_loads_it_bit_for_bit_after_registration(
    quantized: Quantized, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """In a process of its own: the registration would change what other tests show."""
    save_packed(quantized, tokenizer, tmp_path, max_length=64)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith("equal"), result.stderr
