"""Trainable modules in loops that are not quantkit's own, and what such loops do to them."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from quantkit.errors import CheckpointError, RecipeError
from quantkit.ptq import Quantized
from quantkit.qat import (
    Ema,
    Lsq,
    Ranges,
    dead_inputs,
    diagnose,
    pack,
    parameter_groups,
    prepare,
    refuse_dead_inputs,
    set_progress,
)
from quantkit.qat.modules import FakeQuantInput
from tests.conftest import batch_of
from tests.models import answers_of, small_model
from tests.test_qat_identity import SETTINGS, made, trained_a_bit
from tests.test_train_processes import ENVIRONMENT

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = {**batch_of(6, 10, seed=5), "labels": LABELS}
BATCH["attention_mask"][0, 6:] = 0


def started(ranges: Ranges, name: str = "w4a8", seed: int = 0) -> tuple[PreTrainedModel, Quantized]:
    model = small_model(
        "Bert", seed=seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    start = made(model, SETTINGS[name])
    return prepare(model, start, ranges), start


def gradients(trained: PreTrainedModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}
    trained.zero_grad()
    return found


def loss_of(trained: PreTrainedModel, batch: dict[str, Tensor] = BATCH) -> Tensor:
    loss: Tensor = trained(**batch).loss
    return loss


@pytest.mark.parametrize("ranges", [Lsq(), Ema(decay=0.5)])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(ranges: Ranges, reentrant: bool) -> None:
    trained, _ = started(ranges)
    trained.train()
    loss_of(trained).backward()
    expected, seen = gradients(trained), dict(trained.named_buffers())
    seen = {name: value.clone() for name, value in seen.items()}
    if reentrant:
        trained.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5 gives it another name
        trained.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss_of(trained).backward()
    found = gradients(trained)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if reentrant:  # sums the gradients of residuals in another order
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(found[name], gradient), name
    for name, value in trained.named_buffers():
        assert torch.equal(value, seen[name]), name


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    trained, _ = started(Lsq())
    loss_of(trained).backward()
    expected = gradients(trained)
    for rows in (slice(0, 3), slice(3, 6)):
        (loss_of(trained, {name: value[rows] for name, value in BATCH.items()}) / 2).backward()
    for name, gradient in gradients(trained).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_bf16_autocast_learns_nearly_the_same() -> None:
    trained, start = started(Lsq(), seed=2)
    exact = loss_of(trained).detach()
    loss_of(trained).backward()
    expected = gradients(trained)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(trained)
    loss.backward()
    found = gradients(trained)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.05)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert bool(gradient.isfinite().all())
        if name.endswith("dense.weight"):
            aligned = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
            assert float(aligned) > 0.9, name
    assert torch.equal(answers_of(pack(trained, start).model, BATCH), answers_of(trained, BATCH))


def test_transformers_trainer_trains_and_the_result_is_packed(tmp_path: Path) -> None:
    trained, start = started(Lsq())
    rows = [{name: value[at] for name, value in BATCH.items()} for at in range(len(LABELS))]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    groups = parameter_groups(trained, lr=1e-3, weight_decay=0.01, scale_lr=1e-2)
    optimizer = torch.optim.AdamW(groups)
    before = answers_of(trained, BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(trained, arguments, train_dataset=rows, optimizers=(optimizer, None))
        trainer.train()
    trained.train(False)
    assert not torch.equal(answers_of(trained, BATCH), before)
    assert torch.equal(answers_of(pack(trained, start).model, BATCH), answers_of(trained, BATCH))


def test_one_range_for_three_readers_gets_all_their_gradients() -> None:
    trained, _ = started(Lsq())
    attention: Any = trained.get_submodule("bert.encoder.layer.0.attention.self")
    x = torch.randn(2, 5, 48)
    once = [module(x.clone()) for module in (attention.query, attention.key, attention.value)]
    together = [module(x) for module in (attention.query, attention.key, attention.value)]
    for a, b in zip(once, together, strict=True):
        assert torch.equal(a, b)
    found = []
    for outputs in (once, together):
        total = torch.stack([output.square().sum() for output in outputs]).sum()
        found += torch.autograd.grad(total, attention.query.input.log_scale)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_a_diverged_model_is_diagnosed_and_not_packed() -> None:
    trained, start = started(Lsq())
    assert diagnose(trained) == "All parameters are finite, and no range has moved."
    reader = trained.get_submodule("bert.encoder.layer.1.output.dense.input")
    assert isinstance(reader, FakeQuantInput)
    with torch.no_grad():
        reader.get_parameter("log_scale").fill_(2.0)
    assert "bert.encoder.layer.1.output.dense.input, 7.39 times" in diagnose(trained)
    with torch.no_grad():
        reader.get_parameter("log_scale").fill_(torch.nan)
    assert "range of bert.encoder.layer.1.output.dense.input is no longer" in diagnose(trained)
    with pytest.raises(CheckpointError, match=r"layer\.1\.output\.dense\.input\.log_scale is not"):
        pack(trained, start)


def test_layers_without_data_are_named() -> None:
    trained, _ = started(Lsq())
    assert len(dead_inputs(trained)) == 9
    with pytest.raises(RecipeError, match=r"self\.query has not seen any data"):
        refuse_dead_inputs(trained)
    loss_of(trained)
    refuse_dead_inputs(trained)


def test_an_input_that_was_always_zero_is_refused() -> None:
    model = small_model("Bert", hidden_act="relu")
    dense: Any = model.get_submodule("bert.encoder.layer.1.intermediate.dense")
    with torch.no_grad():
        dense.weight.zero_()
        dense.bias.fill_(-1.0)
    start = made(model, SETTINGS["w8a8"])
    with pytest.raises(RecipeError, match=r"layer\.1\.output\.dense was always 0"):
        prepare(model, start, Lsq())


def test_ranges_follow_tokens_and_not_padding() -> None:
    trained, _ = started(Ema(decay=0.5), "w8a8")
    reader = trained.get_submodule("bert.encoder.layer.0.attention.self.query.input")
    assert isinstance(reader, FakeQuantInput)
    trained.train()
    start = float(reader.scale)
    found = []
    for filler in (7, 8):  # what stands behind the end of the first text
        batch = {name: value.clone() for name, value in BATCH.items()}
        batch["input_ids"][0, 6:] = filler
        loss_of(trained, batch)
        assert reader.watch is not None
        found.append((float(reader.watch.seen_low), float(reader.watch.seen_high)))
    assert found[0] == found[1]
    assert float(reader.scale) == start  # until the step is over
    set_progress(trained, 1, 10)
    assert float(reader.scale) != start
    frozen = float(reader.scale)
    for step in range(5, 8):
        set_progress(trained, step, 10)
        frozen = float(reader.scale) if step == 5 else frozen
        loss_of(trained)
    assert float(reader.scale) == frozen


@pytest.mark.parametrize("ranges", [Lsq(), Ema(decay=0.5)])
def test_two_processes_learn_what_one_learns(ranges: Ranges, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom tests.test_qat_interchange import in_processes\n"
        "in_processes(*sys.argv[1:])\n"
    )
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    done = subprocess.run(
        [sys.executable, *launch.split(), str(script), ranges.name, str(tmp_path / "two.pt")],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt")
    one = steps_of(ranges, BATCH, parallel=False)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-5, msg=name)


def in_processes(name: str, path: str) -> None:
    """What each process does with its half of the batch; the first one writes what it learnt."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    half = {key: value[3 * rank : 3 * rank + 3] for key, value in BATCH.items()}
    found = steps_of(Lsq() if name == "lsq" else Ema(decay=0.5), half, parallel=True)
    if rank == 0:
        torch.save(found, path)
    torch.distributed.destroy_process_group()


def steps_of(ranges: Ranges, batch: dict[str, Tensor], *, parallel: bool) -> dict[str, Tensor]:
    trained, _ = started(ranges)
    wrapped: Any = trained
    if parallel:
        wrapped = torch.nn.parallel.DistributedDataParallel(trained)
    groups = parameter_groups(trained, lr=1e-3, weight_decay=0.0, scale_lr=1e-3)
    optimizer = torch.optim.SGD([{**group, "lr": 1e-2} for group in groups])
    trained.train()
    # Steps go apart by rounding: a code that flips moves all ranges behind it.
    steps = 1 if isinstance(ranges, Ema) else 3
    for step in range(steps):
        set_progress(trained, step, 30)
        wrapped(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    set_progress(trained, steps, 30)
    return trained.state_dict()


def test_multipliers_are_chosen_again_once_and_only_for_the_better() -> None:
    trained, _ = started(Lsq())
    module: Any = trained.get_submodule("bert.encoder.layer.0.output.dense")
    with torch.no_grad():
        module.weight.mul_(1.5)
    before = module.multipliers.clone()

    @torch.no_grad()
    def error() -> float:
        wide = module.integers().dequantized()
        return float((wide - module.weight).square().sum())

    worse = error()
    set_progress(trained, 1, 20)
    assert torch.equal(module.multipliers, before)
    set_progress(trained, 2, 20)
    assert not torch.equal(module.multipliers, before)
    assert error() < worse
    again = module.multipliers.clone()
    with torch.no_grad():
        module.weight.mul_(1.5)
    set_progress(trained, 3, 20)
    assert torch.equal(module.multipliers, again)
    trained_a_bit(trained)
