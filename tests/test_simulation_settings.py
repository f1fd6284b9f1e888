"""Full quantization in torch: groups of channels, calibrators, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit.errors import CheckpointError, DataError, RecipeError
from quantkit.exporter import export
from quantkit.numerics import asymmetric_grid, scale_and_zero_point
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, parse_recipe
from quantkit.simulation import Simulated, simulate
from tests.conftest import batch_of
from tests.models import HIDDEN, answers_of, small_model
from tests.simulations import BATCHES, made, naive, outputs, quantizers

STREAM = 4 * 2 + 2  # tensors of two layers' residual streams: two sums and two norms each


@pytest.fixture(scope="module")
def simulated(model: PreTrainedModel) -> Simulated:
    return made(model)


def test_one_group_is_per_tensor(model: PreTrainedModel, simulated: Simulated) -> None:
    batch = batch_of(4, 20, seed=3)
    for ordered in (False, True):
        grouped = made(model, groups=1, ordered=ordered)
        assert grouped.ranges == simulated.ranges
        assert torch.equal(outputs(grouped.model, batch), outputs(simulated.model, batch))


def sums_of_embeddings(model: PreTrainedModel) -> Tensor:
    """What enters the first LayerNorm on the calibration texts [tokens, channels]."""
    tables: Any = model.get_submodule("bert.embeddings")
    rows = []
    for batch in BATCHES:
        ids = batch["input_ids"]
        places = tables.position_embeddings(torch.arange(ids.shape[1]))
        rows.append(tables.word_embeddings(ids) + tables.token_type_embeddings(ids * 0) + places)
    return torch.cat([each.flatten(0, 1) for each in rows])


def test_as_many_groups_as_channels_is_per_channel(model: PreTrainedModel) -> None:
    grouped = made(model, groups=HIDDEN)
    sums = sums_of_embeddings(grouped.model)
    scale, zero_point = scale_and_zero_point(sums.amin(0), sums.amax(0), asymmetric_grid(8))
    first = quantizers(grouped.model)["bert.embeddings.LayerNorm.read"]
    assert torch.equal(first.scale, scale)
    assert torch.equal(first.zero_point, zero_point)
    lengths = [len(quantizer.scale) for quantizer in quantizers(grouped.model).values()]
    # And what is added to the residual: two tensors of each layer.
    assert lengths.count(HIDDEN) == STREAM + 2 * 2
    assert set(lengths) == {1, HIDDEN}
    ordered = made(model, groups=HIDDEN, ordered=True)
    assert torch.equal(quantizers(ordered.model)["bert.embeddings.LayerNorm.read"].scale, scale)


def test_ordered_groups_hold_channels_of_like_range(model: PreTrainedModel) -> None:
    grouped = made(model, groups=4, ordered=True)
    sums = sums_of_embeddings(grouped.model)
    low, high = sums.amin(0), sums.amax(0)
    scale = quantizers(grouped.model)["bert.embeddings.LayerNorm.read"].scale
    for channels in (high - low).argsort().reshape(4, HIDDEN // 4):
        expected, _ = scale_and_zero_point(
            low[channels].min(), high[channels].max(), asymmetric_grid(8)
        )
        assert torch.equal(scale[channels], expected.expand(HIDDEN // 4))
    # The wide channel is in the last group, and no longer decides over the others.
    norm = "bert.encoder.layer.0.output.LayerNorm.made"
    steps = quantizers(grouped.model)[norm].scale
    per_tensor = quantizers(made(model).model)[norm].scale
    assert steps[7] == steps.max()
    assert float(steps.min()) < 0.2 * float(per_tensor)


def test_groups_bring_the_answers_nearer(model: PreTrainedModel, simulated: Simulated) -> None:
    batch = batch_of(16, 20, seed=8)
    exact = answers_of(model, batch)
    far, near = (
        float((outputs(each.model, batch) - exact).square().mean())
        for each in (simulated, made(model, groups=4, ordered=True))
    )
    assert near < far


@pytest.mark.parametrize(
    ("calibrator", "groups"),
    [
        ({"name": "percentile"}, None),
        ({"name": "mse", "candidates": 4}, None),
        ({"name": "entropy", "candidates": 3}, None),
        ({"name": "moving-average"}, 2),
    ],
)
def test_every_calibrator_serves_every_tensor(
    calibrator: dict[str, Any], groups: int | None
) -> None:
    model = small_model("Bert", layers=1)
    widest = {each.tensor: each for each in made(model, bits=4, groups=groups).ranges}
    found = made(model, bits=4, groups=groups, calibrator=calibrator).ranges
    assert [each.tensor for each in found] == list(widest)
    for each in found:
        assert all(a <= b for a, b in zip(widest[each.tensor].low, each.low, strict=True))
        assert all(a <= b for a, b in zip(each.low, each.high, strict=True))
        assert all(a <= b for a, b in zip(each.high, widest[each.tensor].high, strict=True))
    assert any(each.high != widest[each.tensor].high for each in found)


def test_a_clipping_calibrator_is_noted(model: PreTrainedModel) -> None:
    clipping = made(model, calibrator={"name": "percentile", "percentile": 90.0})
    assert "The percentile calibrator clips a value in more than 1 %" in clipping.notes[-1]
    assert max(each.clipped_texts for each in clipping.ranges) > 0.5


def test_only_scope_all_is_simulated(model: PreTrainedModel) -> None:
    recipe = Recipe(name="t", task="t", model="m")
    with pytest.raises(RecipeError, match=r"activations\.scope is 'inputs'.*scope: all"):
        simulate(model, BATCHES, recipe=recipe)


@pytest.mark.parametrize(
    ("activations", "words"),
    [
        ({"scope": "all", "bits": 16}, "one static grid for each tensor"),
        ({"scope": "all", "per": "token"}, "one static grid for each tensor"),
        ({"groups": 6}, "`groups` needs `scope: all`"),
        ({"scope": "all", "ordered": True}, "write `groups`"),
        ({"scope": "all", "groups": 0}, "greater than 0"),
    ],
)
def test_slots_that_do_not_fit_are_refused(activations: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"name": "t", "task": "t", "model": "m", "activations": activations}, "t")


def test_groups_have_to_divide_every_norm() -> None:
    with pytest.raises(RecipeError, match=r"groups is 32, and .*LayerNorm has 24 channels.*2, 3"):
        made(small_model("Electra"), groups=32)


def test_calibration_needs_texts_and_finite_values(model: PreTrainedModel) -> None:
    with pytest.raises(DataError, match="no texts"):
        simulate(model, [], recipe=naive())
    broken = small_model("Bert")
    attention: Any = broken.get_submodule("bert.encoder.layer.0.attention.self")
    with torch.no_grad():
        attention.query.bias[0] = attention.key.bias[0] = 3e38
    with pytest.raises(CheckpointError, match="is not finite"):
        simulate(broken, BATCHES, recipe=naive())


def test_a_tap_that_sees_nothing_is_an_error(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a transformers whose attention goes another way."""
    monkeypatch.setattr("quantkit.simulation.build.ATTENTION", "sdpa")
    with pytest.raises(CheckpointError, match=r"No tensor flows through .*scores.*transformers"):
        made(model)


def test_such_models_are_neither_quantized_nor_exported(
    model: PreTrainedModel,
    simulated: Simulated,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match=r"quantkit study.*quantkit\.simulation\.simulate"):
        quantize(model, BATCHES, recipe=naive())
    with pytest.raises(RecipeError, match=r"simulation of `activations\.scope: all`"):
        export(simulated.model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
