"""7-bit weights, for processors whose 8-bit products overflow in 16 bits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from quantkit.exporter import export
from quantkit.modules import QuantLinear
from quantkit.ptq import Quantized, quantize
from quantkit.qat import Lsq, pack, prepare, set_progress
from quantkit.qat.modules import FakeQuantLinear
from quantkit.recipe import Recipe, with_bits, with_changes
from tests.conftest import ROWS, batch_of
from tests.reference.saturation import overflows, saturating_product

GROUPS = {"weights.group": 16, "embeddings.group": 16}


def made(model: BertForSequenceClassification, bits: int, narrow: bool) -> Quantized:
    base = with_bits(Recipe(name="test", task="none", model="none"), bits)
    changes = {"weights.narrow": narrow} | (GROUPS if bits == 4 else {})
    batches = [batch_of(8, 12, seed=1), batch_of(4, 30, seed=2)]
    return quantize(model, batches, recipe=with_changes(base, changes), reachable_rows=ROWS)


def linears(quantized: Quantized) -> list[QuantLinear]:
    return [module for module in quantized.model.modules() if isinstance(module, QuantLinear)]


def test_a_pair_worked_by_hand() -> None:
    codes = np.array([[255, 255]], dtype=np.uint8)
    assert saturating_product(codes, np.array([[127], [127]], dtype=np.int8)).item() == 32767
    assert saturating_product(codes, np.array([[-127], [-127]], dtype=np.int8)).item() == -32768
    assert saturating_product(codes, np.array([[63], [63]], dtype=np.int8)).item() == 32130


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_narrow_codes_never_overflow(seed: int) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, (4, 32)).astype(np.uint8)
    codes[0] = 255
    narrow = generator.choice([-63, -1, 0, 62, 63], (32, 5)).astype(np.int8)
    assert overflows(codes, narrow) == 0
    wide = np.where(narrow < 0, -127, 127).astype(np.int8)
    wide[:2] = 127  # a pair of one sign, beside the codes of 255
    assert overflows(codes, wide) > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_a_narrow_model_holds_codes_that_cannot_overflow(
    bits: int, model: BertForSequenceClassification
) -> None:
    worst = np.full((1, 96), 255, dtype=np.uint8)
    found = {}
    for narrow in (False, True):
        matrices = [
            linear.integers.wide().numpy().T for linear in linears(made(model, bits, narrow))
        ]
        found[narrow] = sum(overflows(worst[:, : len(each)], each) for each in matrices)
        largest = max(int(np.abs(each.astype(np.int32)).max()) for each in matrices)
        assert (largest <= 63) == narrow
    assert found[True] == 0 < found[False]


def test_narrow_multipliers_end_at_9(model: BertForSequenceClassification) -> None:
    multipliers = [each.multipliers for each in linears(made(model, 4, True))]
    assert max(int(each.max()) for each in multipliers if each is not None) <= 9


def test_a_bit_less_costs_about_6_db(model: BertForSequenceClassification) -> None:
    exact = model.bert.encoder.layer[0].intermediate.dense.weight.detach()
    errors = []
    for narrow in (False, True):
        recipe = Recipe(name="test", task="none", model="none")
        changes = {"weights.narrow": narrow, "smoothing": {"name": "none"}}
        small = quantize(
            model, [batch_of(4, 10)], recipe=with_changes(recipe, changes), reachable_rows=ROWS
        )
        module = small.model.get_submodule("bert.encoder.layer.0.intermediate.dense")
        assert isinstance(module, QuantLinear)
        errors.append(float((module.integers.dequantized() - exact).square().mean()))
    assert 5.0 < 10 * np.log10(errors[1] / errors[0]) < 7.0  # 20 log10(127 / 63) = 6.1


def test_the_file_says_it_and_passes_the_gate(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for narrow, said in ((False, "no"), (True, "yes")):
        small = made(model, 8, narrow)
        exported = export(small.model, tokenizer, tmp_path / said)
        assert exported.parity.problems() == []
        properties = {p.key: p.value for p in onnx.load(exported.path).metadata_props}
        assert properties["quantkit.narrow"] == said


@pytest.mark.parametrize("bits", [8, 4])
def test_training_keeps_to_the_narrow_grid(bits: int, model: BertForSequenceClassification) -> None:
    """Weights that want to leave it, and multipliers that are chosen anew."""
    start = made(model, bits, True)
    trained = prepare(model, start, Lsq())
    with torch.no_grad():
        for module in trained.modules():
            if isinstance(module, FakeQuantLinear):
                module.weight.mul_(1.5)
    set_progress(trained, 1, 10)  # the step at which multipliers are chosen anew
    packed = pack(trained, start)
    matrices = [linear.integers.wide().numpy().T for linear in linears(packed)]
    assert max(int(np.abs(each.astype(np.int32)).max()) for each in matrices) == 63
    batch = batch_of(4, 20, seed=5)
    with torch.inference_mode():
        assert torch.equal(trained(**batch).logits, packed.model(**batch).logits)
