"""The Hadamard rotation, from its matrix through the whole line to a verified file."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.algorithms.hadamard import as_read, block_size, hadamard, rotated
from quantkit.calibration import collect_observed, rotated_extremes
from quantkit.calibrators import Percentile
from quantkit.encoder import describe
from quantkit.errors import CheckpointError, RecipeError
from quantkit.exporter.batches import gate_batches
from quantkit.exporter.bert import build
from quantkit.exporter.gate import check_parity
from quantkit.modules import QuantLinear
from quantkit.onnx_file import Target
from quantkit.packed import load_packed, save_packed
from quantkit.ptq import Quantized
from quantkit.qat import Ema, Lsq, Ranges, pack, prepare
from quantkit.qat.modules import FakeQuantInput
from quantkit.qat.watch import TokenMask
from quantkit.recipe import Recipe, with_changes
from tests.conftest import ROWS, batch_of
from tests.models import HIDDEN, answers_of, small_model
from tests.reference.hadamard import rotation
from tests.test_qat_identity import BATCH, TWO_LEVELS, made, trained_a_bit

BATCHES = gate_batches(ROWS, 20)[:12]
TURNED = {"rotation": "hadamard"}
SETTINGS: dict[str, dict[str, Any]] = {
    "w8a8": {"activations": TURNED},
    "w8a8, plain": {"activations": TURNED, "smoothing": {"name": "none"}},
    "w4a4": {**TWO_LEVELS, "activations": {**TURNED, "bits": 4}, "bias_correction": True},
    "w4a4, tokens": {**TWO_LEVELS, "activations": {**TURNED, "bits": 4, "per": "token"}},
    "symmetric": {"activations": {**TURNED, "symmetric": True}},
}


@functools.cache
def turned(name: str, family: str = "Bert") -> Quantized:
    """A small model of these settings; nothing changes it."""
    return made(small_model(family), SETTINGS[name])


# --- the matrix ----------------------------------------------------------------------


def test_small_matrices_are_sylvesters() -> None:
    half = math.sqrt(0.5)
    assert torch.allclose(hadamard(2), torch.tensor([[half, half], [half, -half]]))
    signs = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert torch.equal(hadamard(4), torch.tensor(signs) / 2)
    found = rotated(torch.tensor([3.0, 1.0, 0.0, 2.0]), 2)
    torch.testing.assert_close(found, torch.tensor([4.0, 2.0, 2.0, -2.0]) * half)
    with pytest.raises(ValueError, match="power of two, not 12"):
        hadamard(12)


def test_blocks_are_the_largest_powers_of_two_that_divide() -> None:
    widths = {384: 128, 768: 128, 1536: 128, 3072: 128, 48: 16, 96: 32, 25: 1, 64: 64}
    assert {width: block_size(width) for width in widths} == widths
    assert [block_size(width, largest=512) for width in (768, 1536)] == [256, 512]


@given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_rotation_is_orthogonal_and_the_oracles(power: int, blocks: int, seed: int) -> None:
    block, width = 2**power, blocks * 2**power
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(3, width, generator=generator), torch.randn(5, width)
    matrix = rotation(width, block)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    np.testing.assert_allclose(rotated(x, block).numpy(), x.numpy() @ matrix, atol=1e-5)
    torch.testing.assert_close(rotated(rotated(x, block), block), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotated(x, block).norm(dim=-1), x.norm(dim=-1))
    product = rotated(x, block) @ rotated(weight, block).T
    torch.testing.assert_close(product, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_one_wide_channel_is_shared_by_its_block() -> None:
    x = torch.zeros(1, 256)
    x[0, 130] = 100.0
    found = rotated(x, 128)
    assert not found[0, :128].any()
    assert torch.allclose(found[0, 128:].abs(), torch.tensor(100 / math.sqrt(128)))


def test_autocast_does_not_round_it() -> None:
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = rotated(x, 32)
    assert found.dtype == torch.float32
    assert torch.equal(found, rotated(x, 32))


# --- PTQ -----------------------------------------------------------------------------


def _inputs(model: PreTrainedModel) -> list[Any]:
    return list(describe(model).layers[1].inputs)


def test_extremes_and_histograms_are_those_of_the_rotated_tensor() -> None:
    model = small_model("Bert")
    batches, inputs = [batch_of(3, 9, seed=3), batch_of(2, 6, seed=4)], _inputs(model)
    factor = torch.rand(HIDDEN) + 0.1
    multipliers = {shared: None if at else factor for at, shared in enumerate(inputs)}
    blocks = {shared: 32 if at == 3 else 16 for at, shared in enumerate(inputs)}
    bounds = rotated_extremes(model, multipliers, blocks, batches)
    seen: dict[str, list[torch.Tensor]] = {}
    for shared in inputs:
        module = model.get_submodule(shared.linears[0])
        store = seen.setdefault(shared.linears[0], [])
        module.register_forward_pre_hook(lambda _, x, store=store: store.append(x[0]))
    for batch in batches:
        answers_of(model, batch)
    for at, shared in enumerate(inputs):
        rows = torch.cat([x.flatten(0, 1) for x in seen[shared.linears[0]]])
        rows = rows if multipliers[shared] is None else rows * factor
        found = rows.double().numpy() @ rotation(rows.shape[1], 32 if at == 3 else 16)
        np.testing.assert_allclose(float(bounds[shared][0]), found.min(), rtol=1e-5)
        np.testing.assert_allclose(float(bounds[shared][1]), found.max(), rtol=1e-5)
    observed = collect_observed(model, bounds, multipliers, batches, Percentile(), blocks)
    for each in observed.values():
        # Nothing lies outside of what the pass before has found.
        assert each.counted().clipped_texts(each.low, each.high) == 0.0


@pytest.mark.parametrize("name", ["w8a8", "w8a8, plain", "w4a4", "w4a4, tokens"])
def test_weights_turn_with_inputs(name: str) -> None:
    result = turned(name)
    assert [d.rotation for d in result.decisions] == [16, 16, 16, 32] * 2 + [16]
    assert any(d.folded for d in result.decisions) == (name != "w8a8, plain")
    for decision in result.decisions:
        # Codes would have nothing to do with unturned weights, and errors be near 1.
        assert decision.error < (1e-3 if decision.bits == 8 else 0.1)
    assert "9 inputs are rotated" in result.notes[-1]
    assert "11,520 multiplications in float" in result.notes[-1]  # 7 * 48 * 16 + 2 * 96 * 32
    module: Any = result.model.get_submodule(result.decisions[0].linears[0])
    x = torch.randn(4, HIDDEN)
    quantizer = module.input_quantizer
    codes, scale, zero_point = quantizer.codes(as_read(x, quantizer.multiplier, 16))
    assert all(map(torch.equal, quantizer(x), (codes, scale, zero_point)))


def test_a_massive_channel_costs_less_when_it_is_shared() -> None:
    model = small_model("Bert")  # a channel is thirty times as wide as the others
    slots = {"activations": {"bits": 4}, "smoothing": {"name": "none"}}
    plain = made(model, slots)
    shared = made(model, {**slots, "activations": {"bits": 4, **TURNED}})
    name = describe(model).layers[1].query_key_value.linears
    before, after = (
        next(d.error for d in each.decisions if d.linears == name) for each in (plain, shared)
    )
    assert after < before * 2 / 3


@pytest.mark.parametrize("change", [{"bits": 16}, {"scope": "all"}, {"rotation": "givens"}])
def test_what_cannot_be_rotated_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"rotation"):
        with_changes(
            Recipe(name="t", task="none", model="none"), {"activations": {**TURNED, **change}}
        )


# --- files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name"), [("Bert", "w8a8"), ("Bert", "w4a4"), ("Albert", "w4a4, tokens")]
)
def test_the_file_computes_what_the_model_does(family: str, name: str) -> None:
    result = turned(name, family)
    proto = build(result.model, {}, "cpu")
    assert check_parity(result.model, proto, BATCHES).problems() == []


@pytest.mark.parametrize("target", ["portable", "cuda"])
def test_other_targets_write_it_too(target: Target) -> None:
    result = turned("symmetric")
    proto = build(result.model, {}, target, single=target == "cuda")
    assert check_parity(result.model, proto, BATCHES).problems() == []


def test_a_file_holds_one_matrix_for_each_block_size() -> None:
    plain = made(small_model("Bert"), {})
    assert all(decision.rotation is None for decision in plain.decisions)
    files = [build(each.model, {}) for each in (plain, turned("w8a8"))]
    matrices = [t for t in files[1].graph.initializer if t.name.startswith("hadamard")]
    assert sorted(tuple(tensor.dims) for tensor in matrices) == [(16, 16), (32, 32)]
    products = [node for node in files[1].graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * 4 + 1 + 1  # and the classifier, which is float
    assert _without_rotation(files[1]) == _without_rotation(files[0])


def _without_rotation(file: onnx.ModelProto) -> list[str]:
    """Operators, but for those between a multiplier and the codes."""
    kinds = [node.op_type for node in file.graph.node]
    text = " ".join(kinds).replace("Reshape MatMul Reshape ", "")
    return text.split()


def test_packed_folders_keep_the_block(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    result = turned("w4a4", "Albert")
    save_packed(result, tokenizer, tmp_path, max_length=32)
    loaded = load_packed(tmp_path)
    assert torch.equal(answers_of(loaded.model, BATCH), answers_of(result.model, BATCH))
    assert loaded.recipe == result.recipe
    modules = [m for m in loaded.model.modules() if isinstance(m, QuantLinear)]
    blocks = [m.input_quantizer.rotation for m in modules if m.input_quantizer is not None]
    assert set(blocks) == {8, 16, 32}


def test_the_engine_says_that_it_has_no_kernel(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    from quantkit.engine.checkpoint import read_checkpoint

    save_packed(turned("w8a8"), tokenizer, tmp_path, max_length=32)
    with pytest.raises(CheckpointError, match=r"activations.rotation 'hadamard'"):
        read_checkpoint(tmp_path, torch.device("cpu"))


# --- training ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "ranges"),
    [
        ("Bert", "w8a8", Ema(decay=0.5)),
        ("Bert", "w4a4, tokens", Lsq()),
        ("Albert", "w4a4", Lsq()),
    ],
)
def test_training_starts_and_ends_with_the_same_bits(
    family: str, name: str, ranges: Ranges
) -> None:
    start = turned(name, family)
    trained = prepare(small_model(family), start, ranges)
    assert any(decision.folded for decision in start.decisions)
    before = answers_of(start.model, BATCH)
    assert torch.equal(answers_of(trained, BATCH), before)
    _near(trained, start)
    end = pack(trained_a_bit(trained), start)
    assert torch.equal(answers_of(trained, BATCH), answers_of(end.model, BATCH))
    assert not torch.equal(answers_of(end.model, BATCH), before)


def _near(trained: PreTrainedModel, start: Quantized) -> None:
    """What is trained on, in floats, is what the integers compute."""
    plan = describe(trained)
    floats = trained(**{n: BATCH[n] for n in plan.arguments})[plan.output].detach()
    torch.testing.assert_close(floats, answers_of(start.model, BATCH), rtol=1e-3, atol=1e-3)


def test_gradients_turn_back() -> None:
    start: Any = turned("w8a8")
    name = start.decisions[0].linears[0]
    quantizer = start.model.get_submodule(name).input_quantizer
    reader = FakeQuantInput(quantizer, Lsq(), symmetric=False, tokens=TokenMask())
    x = (torch.randn(5, HIDDEN) * 0.01).requires_grad_()  # nothing is clipped
    sent = torch.randn(5, HIDDEN)
    (reader.fake(x).values * sent).sum().backward()
    factor = torch.ones(HIDDEN) if quantizer.multiplier is None else quantizer.multiplier
    # d (x m) H / dx, transposed, is H times m.
    expected = (sent.double().numpy() @ rotation(HIDDEN, 16)) * factor.double().numpy()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-4, atol=1e-5)
    learned = reader.log_scale
    assert learned is not None
    assert learned.grad is not None
