"""Full quantization in torch: every tensor on its grid, against a forward pass in NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantkit import numerics
from quantkit.encoder import describe, unroll
from quantkit.modules import QuantLinear
from quantkit.numerics import Grid, asymmetric_grid
from quantkit.ptq import quantize
from quantkit.recipe import parse_recipe
from quantkit.simulation import FakeQuantizer, Simulated, simulate
from quantkit.simulation.ranges import by_text
from tests.conftest import ROWS, batch_of
from tests.models import FAMILIES, HEADS, small_model
from tests.reference.full_quantization import bert_logits
from tests.simulations import BATCHES, NAIVE, made, naive, outputs, quantizers


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
    monkeypatch.setattr("quantkit.numerics.asymmetric_grid", fine)
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
