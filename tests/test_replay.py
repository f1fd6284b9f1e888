"""Passes that go on where the one before ended compute what whole passes compute."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, SharedInput, describe, unroll
from quantkit.moments import InputMoments, MomentCollector, in_turns, stride_for
from quantkit.replay import Replay
from tests.conftest import batch_of
from tests.models import FAMILIES, small_model

BATCHES = [batch_of(4, 12, seed=1), batch_of(3, 30, seed=2), batch_of(4, 7, seed=3)]


def _counted(batches: list[int]) -> Iterable[Mapping[str, Tensor]]:
    batches.append(len(BATCHES))
    yield from BATCHES


def _answers(model: PreTrainedModel, plan: EncoderPlan) -> list[Tensor]:
    with torch.no_grad():
        given = [{name: batch[name] for name in plan.arguments} for batch in BATCHES]
        return [model(**each)[0] for each in given]


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_layers_return_what_they_computed(family: str) -> None:
    model = unroll(small_model(family, layers=3))
    plan = describe(model)
    expected = _answers(model, plan)
    replay = Replay(model, plan, lambda: BATCHES)
    for layer in (0, 2, 3):
        with replay.up_to(layer):
            for found, wanted in zip(_answers(model, plan), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for found, wanted in zip(_answers(model, plan), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_what_the_block_runs_is_not_run_again() -> None:
    model = small_model("Bert", layers=4)
    plan, passes = describe(model), list[int]()
    expected = _answers(model, plan)
    replay = Replay(model, plan, lambda: _counted(passes))
    for layer, following in ((0, 2), (2, 3), (3, None)):
        with replay.up_to(layer, following):
            found = _answers(model, plan)
        assert all(map(torch.equal, found, expected))
    assert not passes
    with replay.up_to(4):  # nobody had said so: one pass, through one layer
        assert all(map(torch.equal, _answers(model, plan), expected))
    assert len(passes) == 1


def test_replay_goes_forward_only() -> None:
    model = small_model("Bert")
    replay = Replay(model, describe(model), lambda: BATCHES)
    with replay.up_to(1):
        pass
    with pytest.raises(ValueError, match="layer 0 was left behind"), replay.up_to(0):
        pass


def test_a_failure_inside_leaves_the_model_and_what_was_recorded() -> None:
    model = small_model("Bert", layers=3)
    plan = describe(model)
    expected, modules = _answers(model, plan), dict(model.named_modules())
    replay = Replay(model, plan, lambda: BATCHES)
    with pytest.raises(KeyError), replay.up_to(1, 2):
        raise KeyError
    assert dict(model.named_modules()) == modules
    with replay.up_to(1):
        assert all(map(torch.equal, _answers(model, plan), expected))


def _collector(
    model: PreTrainedModel, plan: EncoderPlan, strides: Mapping[SharedInput, int]
) -> MomentCollector:
    plain = dict.fromkeys(plan.inputs())
    return MomentCollector(model, plan, plain, {}, (), {}, BATCHES, strides)


def _by_hand(model: PreTrainedModel, plan: EncoderPlan, stride: int) -> dict[str, np.ndarray]:
    """E[x xᵀ] of every Linear's input, in float64, from hooks of its own."""
    rows: dict[str, list[np.ndarray]] = {}
    mask = torch.empty(0)

    def hook_for(name: str) -> object:
        def hook(_module: object, given: tuple[Tensor, ...]) -> None:
            values = given[0][mask.bool()] if given[0].dim() == 3 else given[0]
            rows.setdefault(name, []).append(values.double().numpy())

        return hook

    handles = [
        model.get_submodule(shared.linears[0]).register_forward_pre_hook(
            hook_for(shared.linears[0])  # type: ignore[arg-type]
        )
        for shared in plan.inputs()
    ]
    with torch.no_grad():
        for batch in BATCHES[::stride]:
            mask = batch["attention_mask"]
            model(**{name: batch[name] for name in plan.arguments})
    for handle in handles:
        handle.remove()
    stacked = {name: np.concatenate(parts) for name, parts in rows.items()}
    return {name: values.T @ values / len(values) for name, values in stacked.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 30_000, 10**9])
def test_moments_of_turns_are_those_of_whole_passes(family: str, budget: int) -> None:
    """Turns of one input, turns that end within a layer, and a single turn."""
    model = unroll(small_model(family, layers=3))
    plan = describe(model)
    widths = {s: int(model.get_submodule(s.linears[0]).in_features) for s in plan.inputs()}  # type: ignore[arg-type]
    turns = list(in_turns(list(plan.calls()), widths, budget))
    collector = _collector(model, plan, {})
    found: dict[SharedInput, InputMoments] = {}
    for at, turn in enumerate(turns):
        following = turns[at + 1][0][0] if at + 1 < len(turns) else None
        found |= collector.collect([s for calls in turn for s in calls], widths, following)
    assert len(turns) > 1 or budget == 10**9
    expected = _by_hand(model, plan, 1)
    for shared in plan.inputs():
        wanted = expected[shared.linears[0]]
        np.testing.assert_allclose(
            found[shared].hessian, wanted, rtol=1e-4, atol=1e-5 * wanted.max()
        )


def test_an_input_that_reads_fewer_texts_does_not_change_the_others() -> None:
    model = small_model("Bert")
    plan = describe(model)
    inputs = list(plan.inputs())
    few, many = inputs[3], inputs[4]
    widths = {s: int(model.get_submodule(s.linears[0]).in_features) for s in inputs}  # type: ignore[arg-type]
    found = _collector(model, plan, {few: 2, many: 1}).collect([few, many], widths, None)
    for shared, stride in ((few, 2), (many, 1)):
        wanted = _by_hand(model, plan, stride)[shared.linears[0]]
        np.testing.assert_allclose(found[shared].hessian, wanted, rtol=1e-4, atol=1e-4)
    alone = _collector(model, plan, {few: 2}).collect([few], widths, None)
    assert torch.equal(alone[few].hessian, found[few].hessian)


def test_the_stride_leaves_about_so_many_tokens() -> None:
    batches = [{"input_ids": torch.zeros(16, 128, dtype=torch.int64)}] * 16
    assert stride_for(batches, 8192) == 4
    assert stride_for(batches, 10**6) == 1
