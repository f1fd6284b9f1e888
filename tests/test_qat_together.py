"""What all modules of a model make at once is what each makes by itself."""

import copy
import warnings

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.qat import Fixed, Lsq, Ranges, inputs, prepare, products, together
from quantkit.qat.modules import FakeQuantInput, FakeQuantLinear
from tests.models import small_model
from tests.test_qat_identity import SETTINGS, made
from tests.test_qat_interchange import BATCH, gradients, loss_of


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in chunks, as on CPUs, but by the definition."""
    for module in (inputs, products, together):
        monkeypatch.setattr(module, "in_chunks", lambda _: False)


def started(name: str, ranges: Ranges, family: str = "Bert") -> PreTrainedModel:
    model = small_model(family)
    return prepare(model, made(model, SETTINGS[name]), ranges)


def apart(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose modules make each their own."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, FakeQuantLinear | FakeQuantInput):
            module.together = None
    return model


def trained(model: PreTrainedModel, steps: int = 3) -> dict[str, Tensor]:
    # Adam would make steps of a gradient that is rounding and nothing else.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("family", ["Bert", "Albert"])  # ALBERT's layers hold the same weights
@pytest.mark.parametrize("ranges", [Lsq(), Fixed()], ids=["lsq", "fixed"])
@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_steps_are_those_of_each_by_itself(name: str, ranges: Ranges, family: str) -> None:
    model = started(name, ranges, family)
    other = apart(model)
    assert torch.equal(model(**BATCH).logits, other(**BATCH).logits)
    loss_of(model).backward()
    loss_of(other).backward()
    found, expected = gradients(model), gradients(other)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
    after, wanted = trained(model), trained(other)
    for key, value in wanted.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-5)


def test_what_a_step_has_left_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = started("w8a8", Lsq())
    linears = [each for each in model.modules() if isinstance(each, FakeQuantLinear)]
    first, last = linears[0], linears[-1]
    assert first.together is last.together is not None
    x = torch.randn(2, first.weight.shape[1])
    before = first.together.take(first, x)
    copied = copy.deepcopy(model)  # while the others' still wait
    again = first.together.take(first, x)  # given away once: made anew
    assert before is not None
    assert again is not None
    assert before is not again
    assert torch.equal(before, again)
    theirs = next(each for each in copied.modules() if isinstance(each, FakeQuantLinear))
    assert theirs.together is not None
    same = theirs.together.take(theirs, x)
    assert same is not None
    assert torch.equal(same, before)
    with torch.no_grad():
        last.weight.mul_(2.0)  # an optimizer's step, before the last has had its own
    found = first.together.take(last, x)
    assert found is not None
    last.together = None
    assert not torch.equal(found, again[: len(found)])
    with torch.no_grad():
        assert first.together.take(first, x) is None  # without gradients products are integers'
    monkeypatch.undo()
    assert first.together.take(first, x) is None  # on a CPU each makes its own


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_twice_is_made_by_each(reentrant: bool) -> None:
    model = started("w4a8", Lsq())
    other = apart(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5 gives it another name
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    loss_of(model).backward()
    loss_of(other).backward()
    found, expected = gradients(model), gradients(other)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
