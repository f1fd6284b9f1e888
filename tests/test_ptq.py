import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from quantkit.algorithms.nearest import Nearest
from quantkit.algorithms.smoothing_search import NoSmoothing
from quantkit.algorithms.smoothquant import SmoothQuant
from quantkit.calibrators import Percentile
from quantkit.encoder import describe
from quantkit.errors import CheckpointError, DataError, RecipeError
from quantkit.modules import QuantEmbedding, QuantLinear
from quantkit.numerics import dequantize
from quantkit.placement import TYPES, decide
from quantkit.ptq import Quantized, quantize
from quantkit.recipe import Activations, Recipe
from tests.conftest import ROWS, batch_of, small_bert
from tests.models import small_model

Batches = list[dict[str, torch.Tensor]]


def _recipe(**slots: object) -> Recipe:
    return Recipe(name="test", task="none", model="none", **slots)  # type: ignore[arg-type]


def _logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits


def _integer(model: nn.Module, name: str) -> QuantLinear:
    module = model.get_submodule(name)
    assert isinstance(module, QuantLinear)
    return module


def _float(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def test_every_encoder_linear_and_table_is_quantized_and_the_classifier_is_not(
    quantized: Quantized,
) -> None:
    kinds = {name: type(module) for name, module in quantized.model.named_modules()}
    linears = [name for name, kind in kinds.items() if kind is QuantLinear]
    assert len(linears) == 6 * 2 + 1
    assert [name for name, kind in kinds.items() if kind is nn.Linear] == ["classifier"]
    tables = [name for name, kind in kinds.items() if kind is QuantEmbedding]
    assert tables == [f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position")]


def test_query_key_and_value_share_one_input_quantizer(quantized: Quantized) -> None:
    attention = quantized.model.get_submodule("bert.encoder.layer.0.attention.self")
    assert (
        attention.query.input_quantizer
        is attention.key.input_quantizer
        is attention.value.input_quantizer
    )


def test_the_answers_stay_close_and_the_float_model_as_it_was(
    model: BertForSequenceClassification, quantized: Quantized
) -> None:
    before = copy.deepcopy(model.state_dict())
    batch = batch_of(32, 20, seed=5)
    float_logits, int_logits = _logits(model, batch), _logits(quantized.model, batch)
    signal, noise = float_logits.var(0).sum(), (int_logits - float_logits).square().mean(0).sum()
    assert float(noise) < 0.02 * float(signal)
    assert not torch.equal(float_logits, int_logits)
    quantize(model, [batch], reachable_rows=ROWS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.config.vocab_size == ROWS + 50


def test_unreachable_rows_are_removed(quantized: Quantized) -> None:
    table = quantized.model.get_submodule(describe(quantized.model).embedding.words)
    assert isinstance(table, QuantEmbedding)
    assert len(table.codes) == ROWS
    assert quantized.trimmed_rows == 50
    assert quantized.model.config.vocab_size == ROWS


def test_an_embedding_row_is_within_half_a_step(
    model: BertForSequenceClassification, quantized: Quantized
) -> None:
    table = quantized.model.get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(table, QuantEmbedding)
    ids = torch.arange(ROWS)
    error = (table(ids) - model.bert.embeddings.word_embeddings.weight[:ROWS]).abs()
    assert bool((error <= table.scale * 0.5001).all())


class _Smoothed(nn.Module):
    """A float Linear whose input is divided and whose weight is multiplied by one vector."""

    def __init__(self, linear: nn.Linear, vector: torch.Tensor, outputs: torch.Tensor) -> None:
        super().__init__()
        self.vector, self.linear, self.outputs = vector, linear, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.linear.weight * self.vector
        result = nn.functional.linear(x / self.vector, weight, self.linear.bias)
        return result * self.outputs


def test_smoothing_alone_changes_logits_by_at_most_1e_4(
    model: BertForSequenceClassification, quantized: Quantized, batches: Batches
) -> None:
    """The vectors of a real run, folds included, in float: the function stays the same."""
    smooth = copy.deepcopy(model)
    plan = describe(smooth)
    widest = 0.0
    for layer, old in zip(plan.layers, plan.layers, strict=True):
        for shared in (layer.query_key_value, layer.intermediate, layer.output):
            multiplier = _integer(quantized.model, shared.linears[0]).input.multiplier
            assert multiplier is not None
            vector = 1.0 / multiplier
            widest = max(widest, float(vector.max() / vector.min()))
            for name in shared.linears:
                linear = _float(smooth, name)
                ones = torch.ones(linear.out_features)
                if name == old.attention_output.producer:
                    ones = _fold_of(model, quantized, name)
                parent, _, child = name.rpartition(".")
                setattr(smooth.get_submodule(parent), child, _Smoothed(linear, vector, ones))
        producer = layer.attention_output.producer
        assert producer is not None
        output = _float(smooth, layer.attention_output.linears[0])
        with torch.no_grad():
            output.weight /= _fold_of(model, quantized, producer)
    assert widest > 10.0  # the test would be empty if the vectors were flat
    for batch in batches:
        difference = (_logits(smooth, batch) - _logits(model, batch)).abs().max()
        assert 0.0 < float(difference) <= 1e-4


def _fold_of(model: nn.Module, quantized: Quantized, producer: str) -> torch.Tensor:
    """The factor that moved into the producer, read off its bias."""
    now = _integer(quantized.model, producer).bias
    assert now is not None
    factor: torch.Tensor = now / _float(model, producer).bias
    return torch.where(torch.isfinite(factor), factor, torch.ones_like(factor)).detach()


def test_folding_gives_attention_output_no_multiplier(quantized: Quantized) -> None:
    folded = [d for d in quantized.decisions if d.folded]
    assert [d.linears[0] for d in folded] == [
        f"bert.encoder.layer.{n}.attention.output.dense" for n in range(2)
    ]
    for decision in folded:
        assert _integer(quantized.model, decision.linears[0]).input.multiplier is None


def test_without_smoothing_codes_are_those_of_the_plain_weight(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    plain = quantize(model, batches, recipe=_recipe(smoothing=NoSmoothing(), rounding=Nearest()))
    module = _integer(plain.model, "bert.encoder.layer.1.output.dense")
    weight = _float(model, "bert.encoder.layer.1.output.dense").weight
    assert module.input.multiplier is None
    back = dequantize(module.codes, module.scale, torch.tensor(0))
    assert bool(((back - weight).abs() <= module.scale * 0.5001).all())
    assert bool((module.codes.abs().amax(1) == 127).all())


def test_ranges_cover_what_calibration_saw(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    plain = quantize(model, batches, recipe=_recipe(smoothing=NoSmoothing()))
    seen: list[torch.Tensor] = []
    name = "bert.encoder.layer.0.output.dense"
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    for batch in batches:
        _logits(model, batch)
    handle.remove()
    decision = next(d for d in plain.decisions if d.linears == (name,))
    assert decision.low == pytest.approx(min(float(x.min()) for x in seen), rel=1e-6)
    assert decision.high == pytest.approx(max(float(x.max()) for x in seen), rel=1e-6)


def test_percentile_clips_and_warns(model: BertForSequenceClassification, batches: Batches) -> None:
    recipe = _recipe(activations=Activations(calibrator=Percentile(95.0)), smoothing=NoSmoothing())
    clipped = quantize(model, batches, recipe=recipe)
    whole = quantize(model, batches, recipe=_recipe(smoothing=NoSmoothing()))
    for narrow, wide in zip(clipped.decisions, whole.decisions, strict=True):
        assert wide.low <= narrow.low < narrow.high <= wide.high
        assert narrow.high - narrow.low < 0.9 * (wide.high - wide.low)
    assert "percentile calibrator clips a token" in clipped.notes[0]
    assert whole.notes == ()


def test_fixed_alpha_is_used(model: BertForSequenceClassification, batches: Batches) -> None:
    fixed = quantize(model, batches, recipe=_recipe(smoothing=SmoothQuant(alpha=0.75)))
    assert {decision.smoothing for decision in fixed.decisions} == {0.75}


def test_skipping_one_of_three_keeps_all_that_read_the_tensor(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    recipe = _recipe(skip=("classifier", "*.layer.1.attention.self.key", "*.position_embeddings"))
    partly = quantize(model, batches, recipe=recipe)
    attention = partly.model.get_submodule("bert.encoder.layer.1.attention.self")
    assert all(type(m) is nn.Linear for m in (attention.query, attention.key, attention.value))
    assert not isinstance(
        partly.model.get_submodule("bert.embeddings.position_embeddings"), QuantEmbedding
    )
    reasons = {p.module.rpartition(".")[2]: p.reason for p in partly.plan.placements if not p.bits}
    assert "reads the same tensor" in reasons["query"]
    # The fold needs an integer producer: here attention.output smooths by itself.
    output = _integer(partly.model, "bert.encoder.layer.1.attention.output.dense")
    assert output.input.multiplier is not None


def test_classifier_means_the_last_linear_whatever_its_name() -> None:
    batches = [batch_of(4, 9)]
    for family, name in (("Bert", "classifier"), ("Electra", "classifier.out_proj")):
        model = small_model(family, layers=1)
        spared, whole = quantize(model, batches), quantize(model, batches, recipe=_recipe(skip=()))
        assert type(spared.model.get_submodule(name)) is nn.Linear
        assert type(whole.model.get_submodule(name)) is QuantLinear
        reasons = {p.module: p.reason for p in spared.plan.placements if p.bits is None}
        types = f"{family.lower()}.embeddings.token_type_embeddings"
        assert reasons == {name: "skip: classifier", types: TYPES}
    bare = quantize(small_model("Bert", "Model", layers=1), batches)
    floats = [p.module for p in bare.plan.placements if p.bits is None]
    assert floats == ["embeddings.token_type_embeddings"]


def test_a_type_table_gets_8_bits_by_name_alone() -> None:
    encoder = describe(small_model("Bert", layers=1))
    table = "bert.embeddings.token_type_embeddings"
    for patterns, bits in (((), None), (("*",), None), (("*.token_type_embeddings",), 8)):
        assert decide(encoder, _recipe(eight_bits=patterns)).bits(table) == bits


def test_a_pattern_that_matches_nothing_is_an_error(
    model: BertForSequenceClassification, batches: Batches
) -> None:
    with pytest.raises(RecipeError, match="'clasifier' matches no module"):
        quantize(model, batches, recipe=_recipe(skip=("clasifier",)))


def test_nan_weights_are_refused_by_name() -> None:
    broken = small_bert()
    with torch.no_grad():
        broken.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"layer\.1\.output\.dense\.weight holds 1 values"):
        quantize(broken, [batch_of(2, 5)])


def test_ids_beyond_the_tokenizer_are_refused(model: BertForSequenceClassification) -> None:
    batch = batch_of(2, 5)
    batch["input_ids"][0, 0] = ROWS + 1
    with pytest.raises(DataError, match=f"token id {ROWS + 1}"):
        quantize(model, [batch], reachable_rows=ROWS)


def test_an_unknown_architecture_is_refused() -> None:
    other = BertForMaskedLM(
        BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    )
    with pytest.raises(CheckpointError, match="cannot quantize a BertForMaskedLM"):
        quantize(other, [batch_of(1, 4)])


def test_quantizing_twice_is_refused(quantized: Quantized, batches: Batches) -> None:
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize(quantized.model, batches)
