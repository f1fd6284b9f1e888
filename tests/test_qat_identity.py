"""Training starts as PTQ ended, and ends as it stood: the same codes, the same bits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.encoder import describe
from quantkit.modules import InputQuantizer, QuantEmbedding, QuantLinear
from quantkit.numerics import quantize, symmetric_grid
from quantkit.packed import load_packed, save_packed
from quantkit.ptq import Quantized
from quantkit.qat import Ema, Fixed, Lsq, Ranges, pack, parameter_groups, prepare, set_progress
from quantkit.qat.modules import FakeQuantEmbedding, FakeQuantInput, FakeQuantLinear
from quantkit.qat.start import into_cells
from quantkit.recipe import parse_recipe
from tests.conftest import batch_of
from tests.models import FAMILIES, answers_of, quantized, small_model

TWO_LEVELS: dict[str, Any] = {
    "weights": {"bits": 4, "per": "group", "group": 8},
    "embeddings": {"bits": 4, "per": "group", "group": 8, "frequent": 20},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "w8a8": {},
    "w4a8": {
        **TWO_LEVELS,
        "rounding": {"name": "gptq"},
        "smoothing": {"name": "outlier-scaling"},
    },
    "w4a4": {**TWO_LEVELS, "activations": {"bits": 4}, "bias_correction": True},
    "w4a16": {**TWO_LEVELS, "activations": {"bits": 16}},
    "one level, tokens": {
        "weights": {"bits": 4},
        "embeddings": {"bits": 4},
        "activations": {"per": "token"},
    },
    "mixed": {**TWO_LEVELS, "eight_bits": ["*.intermediate.dense"], "skip": ["*.pooler.dense"]},
    "symmetric": {"activations": {"symmetric": True}},
}
BATCH = batch_of(3, 10, seed=5)


def made(model: PreTrainedModel, slots: dict[str, Any]) -> Quantized:
    recipe = parse_recipe({"name": "t", "task": "none", "model": "none", **slots}, "test")
    names = ("weights", "embeddings", "activations", "rounding", "smoothing", "bias_correction")
    return quantized(
        model, **{name: getattr(recipe, name) for name in (*names, "skip", "eight_bits")}
    )


def trained_a_bit(trained: PreTrainedModel, steps: int = 3) -> PreTrainedModel:
    groups = parameter_groups(trained, lr=1e-3, weight_decay=0.01, scale_lr=1e-2)
    optimizer = torch.optim.AdamW(groups)
    plan = describe(trained)
    trained.train()
    for step in range(steps):
        set_progress(trained, step, steps)
        output = trained(**{name: BATCH[name] for name in plan.arguments})[plan.output]
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained.train(False)
    return trained


@pytest.mark.parametrize("name", SETTINGS)
def test_bert_starts_and_ends_with_the_same_bits(name: str) -> None:
    model = small_model("Bert")
    start = made(model, SETTINGS[name])
    trained = prepare(model, start, Lsq())
    assert torch.equal(answers_of(trained, BATCH), answers_of(start.model, BATCH))
    _same_integers(start, pack(trained, start))
    before = answers_of(start.model, BATCH)
    trained_a_bit(trained)
    end = pack(trained, start)
    assert torch.equal(answers_of(trained, BATCH), answers_of(end.model, BATCH))
    assert not torch.equal(answers_of(trained, BATCH), before)
    assert torch.equal(answers_of(start.model, BATCH), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_starts_and_ends_with_the_same_bits(family: str) -> None:
    model = small_model(family, "ForTokenClassification")
    start = made(model, SETTINGS["w4a8"])
    trained = prepare(model, start, Lsq())
    assert torch.equal(answers_of(trained, BATCH), answers_of(start.model, BATCH))
    end = pack(trained_a_bit(trained), start)
    assert torch.equal(answers_of(trained, BATCH), answers_of(end.model, BATCH))


def _same_integers(a: Quantized, b: Quantized) -> None:
    left, right = a.model.state_dict(), b.model.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        if not name.endswith(".codes") or ".weight" in name:
            assert torch.equal(tensor, right[name]), name
    for name, module in a.model.named_modules():
        if isinstance(module, QuantLinear):
            other: Any = b.model.get_submodule(name)
            assert torch.equal(module.integers.codes, other.integers.codes), name
        elif isinstance(module, QuantEmbedding):
            rows = torch.arange(len(module.scale))
            assert torch.equal(module(rows), b.model.get_submodule(name)(rows)), name


@pytest.mark.parametrize("ranges", [Fixed(), Ema()])
def test_other_ranges_have_no_parameters(ranges: Ranges) -> None:
    model = small_model("Bert")
    start = made(model, SETTINGS["w4a8"])
    trained = prepare(model, start, ranges)
    assert len(parameter_groups(trained, lr=1.0, weight_decay=0.0, scale_lr=1.0)) == 2
    assert torch.equal(answers_of(trained, BATCH), answers_of(start.model, BATCH))
    end = pack(trained_a_bit(trained), start)
    assert torch.equal(answers_of(trained, BATCH), answers_of(end.model, BATCH))
    scales = _input_scales(start), _input_scales(end)
    assert (scales[0] == scales[1]) is isinstance(ranges, Fixed)


def _input_scales(made: Quantized) -> list[float]:
    modules = made.model.modules()
    return [float(module.scale) for module in modules if isinstance(module, InputQuantizer)]


@given(st.integers(0, 2**31), st.sampled_from([8, 4]), st.floats(1e-6, 1e3))
@settings(max_examples=50, deadline=None)
def test_weights_are_moved_into_the_cells_of_any_codes(seed: int, bits: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = symmetric_grid(bits)
    step = (torch.rand(5, 1, generator=generator) + 0.01) * size
    codes = torch.randint(grid.qmin, grid.qmax + 1, (5, 64), generator=generator).to(grid.dtype)
    weight = torch.randn(5, 64, generator=generator) * step * grid.qmax
    latent = into_cells(weight, codes, step)
    assert torch.equal(quantize(latent, step, torch.zeros((), dtype=grid.dtype), grid), codes)
    within = (weight / step - codes).abs() < 0.249
    assert torch.equal(latent[within], weight[within])


def test_the_documented_weights() -> None:
    codes = torch.tensor([[1, 1]], dtype=torch.int8)
    latent = into_cells(torch.tensor([[0.2, 0.9]]), codes, torch.ones(1, 1))
    assert latent[0].tolist() == pytest.approx([0.75, 0.9])


def test_albert_shares_weights_and_keeps_a_range_per_call(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = small_model("Albert", layers=3)
    start = made(model, SETTINGS["w4a8"])
    trained = prepare(model, start, Lsq())
    linears = [m for m in trained.modules() if isinstance(m, FakeQuantLinear)]
    weights = {id(module.weight) for module in linears}
    # Six Linears of one layer, the projection behind the embeddings and the pooler.
    assert (len(linears), len(weights)) == (3 * 6 + 2, 8)
    scales = {id(m.log_scale) for m in trained.modules() if isinstance(m, FakeQuantInput)}
    assert len(scales) == 3 * 4 + 2
    end = pack(trained_a_bit(trained), start)
    save_packed(end, tokenizer, tmp_path, max_length=32)
    loaded = load_packed(tmp_path)
    assert torch.equal(answers_of(loaded.model, BATCH), answers_of(trained, BATCH))


def test_only_rows_that_are_read_get_gradients() -> None:
    model = small_model("Bert")
    trained = prepare(model, made(model, SETTINGS["w4a8"]), Lsq())
    table: Any = trained.get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(table, FakeQuantEmbedding)
    ids = torch.tensor([[5, 7, 7, 0]])
    table(ids).square().sum().backward()
    gradients = [table.weight.grad, table.get_parameter("log_scale").grad]
    for gradient in gradients:
        assert gradient is not None
        # Row 0 is the padding: its vector is not trained, as in nn.Embedding.
        touched = gradient.abs().sum(1).nonzero().flatten().tolist()
        assert set(touched) - {0} == {5, 7}
    assert gradients[0] is not None
    assert not gradients[0][0].any()


def test_copies_and_states_answer_the_same() -> None:
    model = small_model("Albert")
    start = made(model, SETTINGS["w4a8"])
    trained = trained_a_bit(prepare(model, start, Ema(decay=0.5)))
    expected = answers_of(trained, BATCH)
    assert torch.equal(answers_of(copy.deepcopy(trained), BATCH), expected)
    fresh = prepare(model, start, Ema(decay=0.5))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(answers_of(fresh, BATCH), expected)
