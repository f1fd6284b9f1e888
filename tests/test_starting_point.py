"""What fine-tuning begins with: a checkpoint, the built-in model, a student, a baseline."""

from pathlib import Path

import pytest
import torch

from quantkit.data import TaskData, load_task
from quantkit.encoder import head_of
from quantkit.errors import CheckpointError, RecipeError
from quantkit.recipe import Recipe, load_recipe, with_changes
from quantkit.recurrent import RecurrentForSequenceClassification
from quantkit.source import Source
from quantkit.starting_point import starting_point
from tests.cli import checkpoint, write_casa, write_nergrit, write_smsa, write_table


@pytest.fixture(scope="module")
def smsa(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    return load_task("smsa", write_smsa(tmp_path_factory.mktemp("starting")))


def _recipe(**changes: object) -> Recipe:
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return with_changes(load_recipe("smsa.yaml"), values)


def _weights(recipe: Recipe, task: TaskData) -> dict[str, torch.Tensor]:
    return starting_point(recipe, task).model.state_dict()


@pytest.mark.parametrize("model", ["CHECKPOINT", "builtin", "recurrent"])
def test_the_same_seed_gives_the_same_bits(model: str, base: Path, smsa: TaskData) -> None:
    name = str(checkpoint(base)) if model == "CHECKPOINT" else model
    one, again, other = (
        _weights(_recipe(model=name, finetune__seed=seed), smsa) for seed in (3, 3, 4)
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_a_checkpoint_keeps_its_encoder_and_gets_the_task_s_head(
    base: Path, tmp_path: Path
) -> None:
    folder = checkpoint(base)
    start = starting_point(_recipe(model=str(folder)), load_task("casa", write_casa(tmp_path)))
    assert head_of(start.model).aspects[0] == "fuel"
    assert start.model.get_parameter("classifier.weight").shape == (6 * 3, 32)
    words = starting_point(
        _recipe(model=str(folder)), load_task("nergrit", write_nergrit(tmp_path))
    )
    assert type(words.model).__name__ == "BertForTokenClassification"
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(start.model.get_parameter(table), words.model.get_parameter(table))
    assert start.notes == words.notes == ()


def test_a_student_has_every_second_layer_and_says_so(base: Path, smsa: TaskData) -> None:
    folder = str(checkpoint(base, layers=3))
    whole = _weights(_recipe(model=folder), smsa)
    start = starting_point(_recipe(model=folder, student="every-second-layer"), smsa)
    found = start.model.state_dict()
    assert start.model.config.num_hidden_layers == 2
    for layer, original in ((0, 0), (1, 2)):
        name = "bert.encoder.layer.{}.output.dense.weight"
        assert torch.equal(found[name.format(layer)], whole[name.format(original)])
    assert not [name for name in found if ".layer.2." in name]
    assert start.notes == (
        f"The model is a student of 2 layers, begun with every second layer of {folder}: a "
        f"stand-in for a DistilBERT that was distilled in pretraining, not one.",
    )


def test_a_student_of_one_layer_is_refused(base: Path, smsa: TaskData) -> None:
    with pytest.raises(CheckpointError, match="has 1 layers of its own"):
        starting_point(_recipe(model=str(checkpoint(base)), student="every-second-layer"), smsa)


def test_the_built_in_model_reads_train_texts_only(smsa: TaskData) -> None:
    start = starting_point(_recipe(model="builtin"), smsa)
    assert "stand-in for IndoBERT" in start.notes[0]
    assert start.model.config.id2label == {0: "positive", 1: "neutral", 2: "negative"}
    assert start.model.config.vocab_size == len(start.tokenizer)
    train = " ".join(smsa.splits["train"]["text"])
    assert all(word in train for word in start.tokenizer.get_vocab() if word.isalpha())


def test_a_baseline_is_as_the_slot_says(smsa: TaskData) -> None:
    recipe = _recipe(model="recurrent", recurrent__cell="rnn", recurrent__units=[6])
    start = starting_point(recipe, smsa)
    assert isinstance(start.model, RecurrentForSequenceClassification)
    assert (start.model.config.cell, start.model.config.units) == ("rnn", [6])
    # Five words a text, and nothing around them; 5 nouns, "itu", "dan", 12 words, 2 of its own.
    assert start.model.config.max_position_embeddings == 5
    assert start.model.config.vocab_size == 5 + 2 + 12 + 2
    cut = starting_point(_recipe(model="recurrent", max_length=4), smsa)
    assert cut.model.config.max_position_embeddings == 4


def test_a_baseline_needs_its_model_and_a_classification(
    base: Path, smsa: TaskData, tmp_path: Path
) -> None:
    recipe = _recipe(model=str(checkpoint(base)), recurrent__cell="rnn")
    with pytest.raises(RecipeError, match="needs `model: recurrent`"):
        starting_point(recipe, smsa)
    names = load_task("nergrit", write_nergrit(tmp_path))
    with pytest.raises(RecipeError, match=r"one label a text.*nergrit \(words\)"):
        starting_point(_recipe(model="recurrent"), names)


def test_words_need_a_model_that_reads_them(tmp_path: Path) -> None:
    names = load_task("nergrit", write_nergrit(tmp_path))
    with pytest.raises(RecipeError, match=r"reads texts, not sentences of words.*--model"):
        starting_point(_recipe(model="builtin"), names)


def test_features_have_nothing_to_learn(base: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.csv", "text", [f"teks {n}" for n in range(20)])
    task = load_task("custom", table, Source(kind="features"))
    with pytest.raises(RecipeError, match="quantkit ptq --checkpoint MODEL --texts FILE"):
        starting_point(_recipe(model=str(checkpoint(base))), task)
