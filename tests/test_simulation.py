"""Full quantization in torch: every tensor on its grid, against a forward pass in NumPy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quantkit import numerics
from quantkit.encoder import describe, unroll
from quantkit.errors import CheckpointError, DataError, RecipeError
from quantkit.exporter import export
from quantkit.modules import QuantLinear
from quantkit.numerics import Grid, asymmetric_grid, scale_and_zero_point
from quantkit.ptq import quantize
from quantkit.recipe import Recipe, parse_recipe
from quantkit.simulation import FakeQuantizer, Simulated, simulate
from quantkit.simulation.ranges import by_text
from tests.conftest import ROWS, batch_of
from tests.models import FAMILIES, HEADS, HIDDEN, answers_of, small_model
from tests.reference.full_quantization import bert_logits

Batches = list[dict[str, Tensor]]
NAIVE: dict[str, Any] = {"weights": {"per": "tensor"}, "smoothing": {"name": "none"}, "skip": []}
BATCHES = [batch_of(8, 12, seed=1), batch_of(4, 30, seed=2)]
STREAM = 4 * 2 + 2  # tensors of two layers' residual streams: two sums and two norms each


def naive(**activations: Any) -> Recipe:  # noqa: ANN401
    values = {**NAIVE, "activations": {"scope": "all", **activations}}
    return parse_recipe({"name": "test", "task": "none", "model": "none", **values}, "test")


def made(model: PreTrainedModel, **activations: Any) -> Simulated:  # noqa: ANN401
    return simulate(model, BATCHES, recipe=naive(**activations), reachable_rows=ROWS)


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    arguments = ("input_ids", "attention_mask")
    with torch.no_grad():
        result = model(**{name: batch[name] for name in arguments})
    answer: Tensor = result["logits" if "logits" in result else "last_hidden_state"]
    return answer


def quantizers(model: nn.Module) -> dict[str, FakeQuantizer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantizer)}


@pytest.fixture(scope="module")
def simulated(model: PreTrainedModel) -> Simulated:
    return made(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_tensor_lies_on_its_grid(family: str, head: str) -> None:
    """With 4 bits, no module that computes may read or make more than 16 different values."""
    model = small_model(family, head)
    plan = describe(model)
    result = made(model, bits=4).model
    seen: dict[str, int] = {}

    def count(name: str, part: str) -> Callable[..., None]:
        def hook(_: nn.Module, *tensors: Any) -> None:  # noqa: ANN401
            value = tensors[-1][0] if isinstance(tensors[-1], tuple) else tensors[-1]
            seen[f"{name} {part}"] = max(seen.get(f"{name} {part}", 0), len(value.unique()))

        return hook

    readers = [n for n, m in result.named_modules() if isinstance(m, (QuantLinear, nn.LayerNorm))]
    makers = [name.removesuffix(".module") for name in readers]
    attentions = [layer.query_key_value.linears[0].rpartition(".")[0] for layer in plan.layers]
    for name in (*readers, *(layer.activation for layer in plan.layers)):
        result.get_submodule(name).register_forward_pre_hook(count(name, "reads"))
    for name in makers:
        result.get_submodule(name).register_forward_hook(count(name, "makes"))
    for name in attentions:
        inside = result.get_submodule(f"{name}.quantizers.scores")
        inside.register_forward_hook(count(name, "scores"))
        inside = result.get_submodule(f"{name}.quantizers.probabilities")
        inside.register_forward_hook(count(name, "probabilities"))
    answers = outputs(result, batch_of(4, 20, seed=3))
    assert len(answers.unique()) <= 16
    assert max(seen.values()) <= 16
    linears = sum(len(shared.linears) for shared in plan.inputs())
    norms = 1 + 2 * len(plan.layers)
    assert len(seen) == 2 * (linears + norms) + 3 * len(plan.layers)
    assert bool(torch.isfinite(answers).all())


def test_the_whole_pass_is_that_of_numpy(simulated: Simulated) -> None:
    """In float64, where no rounding of sums can move a value onto another code."""
    model = made(small_model("Bert", layers=1)).model.double()
    batch = batch_of(3, 9, seed=4)
    batch["attention_mask"][1, 6:] = 0
    ours: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, result: ours.update({name: result.numpy()})

    for name, quantizer in quantizers(model).items():
        quantizer.register_forward_hook(keep(name))
    outputs(model, batch)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    theirs = bert_logits(
        arrays, batch["input_ids"].numpy(), batch["attention_mask"].numpy(), layers=1, heads=4
    )
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-9, err_msg=name)
    assert len(ours) == 2 + 14 + 3
    assert len(simulated.ranges) == 2 + 2 * 14 + 3


def test_a_fine_grid_leaves_the_weight_only_model(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_only = parse_recipe(
        {"name": "t", "task": "none", "model": "m", **NAIVE, "activations": {"bits": 16}}, "t"
    )
    exact = quantize(model, BATCHES, recipe=weights_only, reachable_rows=ROWS).model
    batch = BATCHES[1]  # whose values all lie inside the ranges
    fine = lambda _: Grid(0, 2**20 - 1, torch.int32)  # noqa: E731
    coarse = outputs(made(model).model, batch) - outputs(exact, batch)
    monkeypatch.setattr("quantkit.ptq.inputs.asymmetric_grid", fine)
    monkeypatch.setattr("quantkit.simulation.build.asymmetric_grid", fine)
    left = outputs(made(model).model, batch) - outputs(exact, batch)
    assert float(left.abs().max()) < 1e-3 < float(coarse.abs().max())


def test_more_is_on_grids_than_the_inputs_of_linears(
    model: PreTrainedModel, simulated: Simulated
) -> None:
    inputs = {"name": "t", "task": "none", "model": "m", **NAIVE}
    deployed = quantize(model, BATCHES, recipe=parse_recipe(inputs, "t"), reachable_rows=ROWS)
    assert len(deployed.decisions) == 4 * 2 + 2
    assert len(quantizers(simulated.model)) == len(simulated.ranges) == 33
    assert [each.tensor for each in simulated.ranges[:2]] == [
        "bert.embeddings.LayerNorm.read",
        "bert.embeddings.LayerNorm.made",
    ]
    assert simulated.ranges[-1].tensor == "classifier.made"
    assert simulated.notes == (
        "Full quantization, simulated in torch: 33 tensors of the forward pass lie on grids of "
        "8 bits.",
    )
    # The float model is as it was, and attends as it did.
    assert not quantizers(model)
    assert model.config._attn_implementation != simulated.model.config._attn_implementation


def test_weights_are_those_of_quantize(model: PreTrainedModel, simulated: Simulated) -> None:
    inputs = {"name": "t", "task": "none", "model": "m", **NAIVE}
    deployed = quantize(model, BATCHES, recipe=parse_recipe(inputs, "t"), reachable_rows=ROWS)
    theirs = simulated.model.state_dict()
    for name, module in deployed.model.named_modules():
        if isinstance(module, QuantLinear):
            assert torch.equal(module.codes, theirs[f"{name}.module.codes"])
            assert torch.equal(module.scale, theirs[f"{name}.module.scale"])


def test_padding_changes_no_answer() -> None:
    model = made(small_model("Bert")).model.double()
    batch = batch_of(3, 20, seed=6)
    alone = outputs(model, {name: value[:, :11] for name, value in batch.items()})
    batch["attention_mask"][:, 11:] = 0
    assert torch.allclose(outputs(model, batch), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("calibrator", ["minmax", "percentile"])
def test_padding_has_no_part_in_the_ranges(calibrator: str) -> None:
    model = small_model("DistilBert")
    short, long = batch_of(4, 12, seed=1), batch_of(4, 30, seed=2)
    padded = {name: torch.cat([short[name], long[name][:, :12]]) for name in short}
    padded = {name: nn.functional.pad(padded[name], (0, 18)) for name in padded}
    for name in padded:
        padded[name][4:] = long[name]
    padded["input_ids"][:4, 12:] = 7  # not the padding token: the mask alone decides
    recipe = naive(calibrator={"name": calibrator})
    apart = simulate(model, [short, long], recipe=recipe)
    together = simulate(model, [padded], recipe=recipe)
    for one, other in zip(apart.ranges, together.ranges, strict=True):
        assert one.tensor == other.tensor
        np.testing.assert_allclose(one.low, other.low, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.high, other.high, rtol=1e-3, atol=1e-4)


def test_what_is_kept_of_a_text() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    assert [text.tolist() for text in by_text(tokens, mask)] == [
        [[0.0, 1.0], [2.0, 3.0]],
        [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]],
    ]
    scores = torch.arange(18.0).reshape(2, 1, 3, 3)
    assert by_text(scores, mask)[0].tolist() == [[[0.0, 1.0], [3.0, 4.0]]]
    assert [text.shape for text in by_text(tokens[:, 0], mask)] == [(1, 2), (1, 2)]
    assert [text.shape for text in by_text(scores, None)] == [(1, 3, 3), (1, 3, 3)]


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


def test_symmetric_grids_but_for_probabilities(model: PreTrainedModel) -> None:
    for name, quantizer in quantizers(made(model, symmetric=True).model).items():
        expected = 0 if name.endswith("probabilities") else numerics.centre(asymmetric_grid(8))
        assert quantizer.zero_point.tolist() == [expected], name


def test_smoothed_inputs_keep_their_multiplier(model: PreTrainedModel) -> None:
    recipe = parse_recipe(
        {"name": "t", "task": "t", "model": "m", "activations": {"scope": "all"}}, "t"
    )
    found = simulate(model, BATCHES, recipe=recipe, reachable_rows=ROWS)
    names = {name for name, _ in found.model.named_modules() if name.endswith(".multiplier")}
    inside = "bert.encoder.layer.0"
    # Attention's context has none: its factor is in the value projection.
    assert {name for name in names if name.startswith(inside)} == {
        f"{inside}.attention.self.query.multiplier",
        f"{inside}.attention.self.key.multiplier",
        f"{inside}.attention.self.value.multiplier",
        f"{inside}.intermediate.dense.multiplier",
        f"{inside}.output.dense.multiplier",
    }
    # GELU's output is quantized once, behind the multiplier.
    activation = f"{inside}.intermediate.intermediate_act_fn"
    assert isinstance(found.model.get_submodule(f"{inside}.output.dense.read"), FakeQuantizer)
    assert not list(found.model.get_submodule(activation).children())
    batch = batch_of(16, 20, seed=8)
    assert torch.isfinite(outputs(found.model, batch)).all()


def test_skipped_weights_stay_in_float_and_their_tensors_do_not(model: PreTrainedModel) -> None:
    recipe = parse_recipe(
        {
            "name": "t",
            "task": "t",
            "model": "m",
            **NAIVE,
            "skip": ["classifier"],
            "activations": {"scope": "all"},
        },
        "t",
    )
    found = simulate(model, BATCHES, recipe=recipe, reachable_rows=ROWS)
    assert isinstance(found.model.get_submodule("classifier.module"), nn.Linear)
    assert len(found.ranges) == 33


def test_gradients_pass_the_grids(simulated: Simulated) -> None:
    ids = batch_of(2, 8, seed=1)["input_ids"]
    vectors = simulated.model.get_input_embeddings()(ids).detach().requires_grad_()
    simulated.model(inputs_embeds=vectors)["logits"].sum().backward()
    assert vectors.grad is not None
    assert float(vectors.grad.abs().sum()) > 0.0


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


def test_an_albert_has_its_own_grids_for_every_call() -> None:
    model = small_model("Albert")
    result = made(model)
    layers = describe(unroll(model)).layers
    names = [f"{layer.output}.read" for layer in layers]
    assert len(result.ranges) == 34
    assert len(set(names)) == 2
    norms = [result.model.get_submodule(f"{layer.output_norm}.module") for layer in layers]
    assert norms[0].weight is norms[1].weight
    grids = quantizers(result.model)
    first, second = (grids[f"{layer.output_norm}.made"] for layer in layers)
    assert not torch.equal(first.scale, second.scale)
