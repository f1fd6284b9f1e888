import pytest
import torch
from transformers import BertForSequenceClassification

from quantkit.calibration import InputStatistics, collect_statistics
from quantkit.encoder import describe
from quantkit.errors import CheckpointError, DataError
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
