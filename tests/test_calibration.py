from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding, BertForSequenceClassification

from quantkit.calibration import (
    Batch,
    InputStatistics,
    batches_of,
    collect_observed,
    collect_statistics,
    extremes,
)
from quantkit.calibrators import Calibrator, Entropy, MinMax, MovingAverage, Mse, Percentile
from quantkit.calibrators.histogram import Histogram, by_range
from quantkit.encoder import SharedInput, describe
from quantkit.errors import CheckpointError, DataError
from quantkit.numerics import asymmetric_grid
from tests.conftest import ROWS, batch_of, small_bert


def test_statistics_do_not_depend_on_padding(model: BertForSequenceClassification) -> None:
    inputs = list(describe(model).inputs())
    batch = batch_of(4, 10)
    padded = {name: torch.nn.functional.pad(values, (0, 9)) for name, values in batch.items()}
    padded["input_ids"][:, 10:] = ROWS - 1  # a real word where padding stands
    exact = collect_statistics(model, inputs, [batch], seed=0)
    ignored = collect_statistics(model, inputs, [padded], seed=0)
    for shared in inputs:
        torch.testing.assert_close(exact[shared].low, ignored[shared].low, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exact[shared].high, ignored[shared].high, rtol=1e-4, atol=1e-5)
        assert exact[shared].rows.shape == ignored[shared].rows.shape


def test_extremes_are_those_of_all_rows_and_the_sample_is_bounded() -> None:
    statistics = InputStatistics(seed=0, sampled_rows=50)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(40, 6, generator=generator) for _ in range(20)]
    for part in parts:
        statistics.update(part)
        assert len(statistics.rows) <= 50
    everything = torch.cat(parts)
    assert torch.equal(statistics.low, everything.amin(0))
    assert torch.equal(statistics.high, everything.amax(0))
    rows = {tuple(row) for row in everything.tolist()}
    assert all(tuple(row) in rows for row in statistics.rows.tolist())


def test_the_sample_is_uniform_over_the_stream() -> None:
    counts = torch.zeros(10)
    for seed in range(200):
        statistics = InputStatistics(seed=seed, sampled_rows=10)
        for part in range(10):
            statistics.update(torch.full((10, 1), float(part)))
        counts += torch.bincount(statistics.rows[:, 0].long(), minlength=10)
    # 2,000 draws over ten parts: 200 each, standard deviation about 13
    assert counts.min() > 140
    assert counts.max() < 260


def test_no_batch_is_an_error(model: BertForSequenceClassification) -> None:
    with pytest.raises(DataError, match="at least one batch"):
        collect_statistics(model, list(describe(model).inputs()), [], seed=0)


ONE = {"input_ids": torch.ones(1, 3, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (ONE, r"is one batch; quantkit takes a list of them: \[batch\]"),
        (BatchEncoding(dict(ONE)), "is one batch"),
        (["makanannya enak"], "batch 0 is a str; .*return_tensors"),
        ([ONE, {"input_ids": [[1, 2]]}], "batch 1 is a batch of lists; "),
        ([{"input_ids": torch.ones(3)}], r"batch 0 is a batch of ids \[3\]; "),
        ([{"attention_mask": torch.ones(1, 3)}], "batch 0 is a dict; "),
    ],
)
def test_what_is_no_list_of_batches_is_named(calibration: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match=words):
        batches_of(calibration)


def test_batches_may_come_from_anywhere() -> None:
    assert batches_of(each for each in (ONE, BatchEncoding(dict(ONE)))) == [ONE, ONE]
    assert batches_of([]) == []


def test_an_infinite_activation_names_its_layer() -> None:
    broken = small_bert()
    with torch.no_grad():
        broken.bert.encoder.layer[0].intermediate.dense.bias[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"layer\.0\.output\.dense is not finite"):
        collect_statistics(broken, list(describe(broken).inputs()), [batch_of(2, 5)], seed=0)


def test_training_mode_is_restored(model: BertForSequenceClassification) -> None:
    model.train()
    try:
        collect_statistics(model, list(describe(model).inputs()), [batch_of(2, 5)], seed=0)
        assert model.training
    finally:
        model.eval()


# --- pass B


def _smoothed(
    model: BertForSequenceClassification, shared: SharedInput, batches: list[Batch], factor: Tensor
) -> list[Tensor]:
    """The tensor that `shared` names times `factor`, one [tokens, in] per batch."""
    seen: list[Tensor] = []
    handle = model.get_submodule(shared.linears[0]).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].flatten(0, -2) * factor)
    )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return seen


def _inputs(model: BertForSequenceClassification) -> list[SharedInput]:
    return list(describe(model).layers[1].inputs)


def _multipliers(inputs: list[SharedInput]) -> dict[SharedInput, Tensor | None]:
    """None for the first, and random factors for the others; the last one reads 96 channels."""
    generator = torch.Generator().manual_seed(3)
    widths = (48, 48, 48, 96)
    factors = [torch.rand(width, generator=generator) + 0.1 for width in widths]
    return {inputs[0]: None} | dict(zip(inputs[1:], factors[1:], strict=True))


@pytest.mark.parametrize("groups", [1, 8, 48])
def test_extremes_are_those_of_the_smoothed_tensor(
    model: BertForSequenceClassification, batches: list[Batch], groups: int
) -> None:
    inputs = _inputs(model)
    statistics = collect_statistics(model, inputs, batches, seed=0)
    for shared, factor in _multipliers(inputs).items():
        low, high = extremes(statistics[shared], factor, groups)
        ones = torch.ones(()) if factor is None else factor
        rows = by_range(torch.cat(_smoothed(model, shared, batches, ones)), groups)
        assert torch.equal(low, rows.amin(1))
        assert torch.equal(high, rows.amax(1))


@pytest.mark.parametrize("groups", [1, 8, 48])
def test_one_pass_fills_the_histograms_of_all_inputs(
    model: BertForSequenceClassification, batches: list[Batch], groups: int
) -> None:
    inputs = _inputs(model)
    multipliers = _multipliers(inputs)
    statistics = collect_statistics(model, inputs, batches, seed=0)
    bounds = {
        shared: extremes(statistics[shared], multipliers[shared], groups) for shared in inputs
    }
    drawn = []

    def once() -> Iterator[Batch]:
        for batch in batches:
            drawn.append(batch)
            yield batch

    observed = collect_observed(model, bounds, multipliers, once(), Percentile())
    assert len(drawn) == len(batches)
    for shared, factor in multipliers.items():
        expected = Histogram(*bounds[shared])
        for batch in batches:
            for row in range(len(batch["input_ids"])):
                text = {name: values[row : row + 1] for name, values in batch.items()}
                ones = torch.ones(()) if factor is None else factor
                expected.update(_smoothed(model, shared, [text], ones)[0])
        histogram = observed[shared].counted()
        assert histogram.counts.shape == (groups, histogram.bins)
        # Alone and in a batch a product differs in its last bits, and so may a value's bin.
        moved = (histogram.counts.cumsum(1) - expected.counts.cumsum(1)).abs().sum()
        assert float(moved) <= 0.01 * float(expected.counts.sum())
        assert float(histogram.counts.sum()) == float(expected.counts.sum())


def test_moving_extremes_are_averaged_over_batches(
    model: BertForSequenceClassification, batches: list[Batch]
) -> None:
    inputs = _inputs(model)
    multipliers = _multipliers(inputs)
    statistics = collect_statistics(model, inputs, batches, seed=0)
    bounds = {shared: extremes(statistics[shared], multipliers[shared], 8) for shared in inputs}
    calibrator = MovingAverage(0.75)
    observed = collect_observed(model, bounds, multipliers, batches, calibrator)
    for shared, factor in multipliers.items():
        ones = torch.ones(()) if factor is None else factor
        first, second = (by_range(x, 8) for x in _smoothed(model, shared, batches, ones))
        low, high = calibrator.range(observed[shared], asymmetric_grid(8))
        torch.testing.assert_close(low, 0.75 * first.amin(1) + 0.25 * second.amin(1))
        torch.testing.assert_close(high, 0.75 * first.amax(1) + 0.25 * second.amax(1))


def test_pass_b_does_not_see_padding(model: BertForSequenceClassification) -> None:
    inputs = _inputs(model)
    batch = batch_of(4, 10)
    padded = {name: torch.nn.functional.pad(values, (0, 9)) for name, values in batch.items()}
    padded["input_ids"][:, 10:] = ROWS - 1
    statistics = collect_statistics(model, inputs, [batch], seed=0)
    bounds = {shared: extremes(statistics[shared], None) for shared in inputs}
    nothing = dict.fromkeys(inputs)
    for calibrator in (MovingAverage(), Mse(candidates=10)):
        exact = collect_observed(model, bounds, nothing, [batch], calibrator)
        ignored = collect_observed(model, bounds, nothing, [padded], calibrator)
        for shared in inputs:
            counts = exact[shared].counted().counts.sum(), ignored[shared].counted().counts.sum()
            assert counts[0] == counts[1]
            ends = (calibrator.range(each[shared], asymmetric_grid(8)) for each in (exact, ignored))
            torch.testing.assert_close(*map(torch.cat, ends), rtol=1e-4, atol=1e-4)


def test_minmax_takes_no_second_pass(model: BertForSequenceClassification) -> None:
    inputs = _inputs(model)
    statistics = collect_statistics(model, inputs, [batch_of(2, 5)], seed=0)
    bounds = {shared: extremes(statistics[shared], None) for shared in inputs}
    observed = collect_observed(model, bounds, dict.fromkeys(inputs), iter(()), MinMax())
    for shared, (low, high) in bounds.items():
        assert MinMax().range(observed[shared], asymmetric_grid(8)) == (low, high)


@pytest.mark.parametrize("calibrator", [Percentile(), MovingAverage(), Mse(), Entropy()])
def test_batches_used_up_by_the_first_pass_are_an_error(
    model: BertForSequenceClassification, calibrator: Calibrator
) -> None:
    inputs = _inputs(model)
    batches = iter([batch_of(2, 5)])
    statistics = collect_statistics(model, inputs, batches, seed=0)
    bounds = {shared: extremes(statistics[shared], None) for shared in inputs}
    with pytest.raises(DataError, match=f"{calibrator.name} calibrator reads .* second time"):
        collect_observed(model, bounds, dict.fromkeys(inputs), batches, calibrator)
