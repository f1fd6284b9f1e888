import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
)

from quantkit.batching import encode_unlabelled
from quantkit.checkpoint import (
    builtin_model,
    label_names,
    length_limit,
    load_float,
    load_for_training,
    reachable_rows,
    save_float,
    takes_token_types,
    untrained,
)
from quantkit.data.tokenizer import train_wordpiece
from quantkit.errors import CheckpointError
from quantkit.heads import HEAD_KEY, Head, Kind
from quantkit.tokenization import Inputs
from tests.training import ASPECTS, CLASSES, FEATURES, HEADS, WORDS, byte_level_tokenizer

WORDPIECE = train_wordpiece(["makan enak tidak sekali"], vocab_size=60)
SIZES: dict[str, Any] = dict(
    vocab_size=len(WORDPIECE),
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
    num_hidden_layers=2,
    pad_token_id=0,
)
OF_ROBERTA = {"vocab_size": 290, "pad_token_id": 1, "max_position_embeddings": 34}
PRETRAINED: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForPreTraining, BertConfig(**SIZES)),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(hidden_dim=32, **SIZES)),
    "roberta": (
        RobertaForMaskedLM,
        RobertaConfig(**(SIZES | OF_ROBERTA | {"type_vocab_size": 1})),
    ),
    "electra": (ElectraForPreTraining, ElectraConfig(embedding_size=8, **SIZES)),
    "albert": (AlbertForMaskedLM, AlbertConfig(embedding_size=8, **SIZES)),
}


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    return byte_level_tokenizer() if family == "roberta" else WORDPIECE


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each family, as pretraining leaves it."""
    folder = tmp_path_factory.mktemp("pretrained")
    for family, (kind, config) in PRETRAINED.items():
        torch.manual_seed(0)
        save_float(kind(config), tokenizer_of(family), folder / family)
    return {family: folder / family for family in PRETRAINED}


@pytest.fixture
def folder(pretrained: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of BERT's to be damaged."""
    return Path(shutil.copytree(pretrained["bert"], tmp_path / "bert"))


def class_name(family: str, head: Head) -> str:
    ending = {"words": "ForTokenClassification", "features": "Model"}
    return PRETRAINED[family][0].__name__.split("For")[0] + ending.get(
        head.kind, "ForSequenceClassification"
    )


PROBLEMS: dict[Kind, str] = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


@pytest.mark.parametrize("family", PRETRAINED)
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_put_on_and_found_again(
    family: str, kind: Kind, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    head = HEADS[kind]
    model, tokenizer = load_for_training(str(pretrained[family]), head)
    assert type(model).__name__ == class_name(family, head)
    encoder = load_file(pretrained[family] / "model.safetensors")
    ours = {f"{model.base_model_prefix}.{k}": v for k, v in model.base_model.state_dict().items()}
    shared = [name for name in ours if ".pooler." not in name]
    assert len(shared) > 10
    assert all(torch.equal(ours[name], encoder[name]) for name in shared)
    save_float(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config[HEAD_KEY] == head.to_json()
    assert list(config["id2label"].values()) == list(head.output_names)
    assert config["label2id"] == {name: at for at, name in enumerate(head.output_names)}
    assert config.get("problem_type") == PROBLEMS.get(kind)
    again, _ = load_float(tmp_path)
    assert type(again) is type(model)
    weights = again.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_the_outputs_names_are_the_models_labels(pretrained: dict[str, Path]) -> None:
    model, _ = load_for_training(str(pretrained["bert"]), ASPECTS)
    assert label_names(model) == list(ASPECTS.output_names)
    assert model.get_parameter("classifier.weight").shape == (6, 16)
    many = Head("classification", tuple(f"label {at}" for at in range(12)))
    model, _ = load_for_training(str(pretrained["bert"]), many)
    assert label_names(model) == list(many.labels)  # 10 and 11 do not come before 2


def test_a_head_of_another_task_is_replaced(pretrained: dict[str, Path], tmp_path: Path) -> None:
    save_float(*load_for_training(str(pretrained["bert"]), ASPECTS), tmp_path)
    model, _ = load_for_training(str(tmp_path), CLASSES)
    assert model.get_parameter("classifier.weight").shape == (2, 16)
    assert getattr(model.config, HEAD_KEY) == CLASSES.to_json()
    assert label_names(model) == ["low", "high"]


def test_byte_level_words_get_a_space_before_them_that_stays(
    pretrained: dict[str, Path], tmp_path: Path
) -> None:
    source = str(pretrained["roberta"])
    model, tokenizer = load_for_training(source, WORDS)
    plain = load_for_training(source, CLASSES)[1]
    save_float(model, tokenizer, tmp_path)
    again = load_float(tmp_path)[1]
    words, all_three = Inputs([["enak", "sekali"]]), (tokenizer, again, plain)
    found = [encode_unlabelled(t, words, WORDS, 16).ids[0].tolist() for t in all_three]
    assert found[0] == found[1] == plain(" enak sekali")["input_ids"]
    assert found[0] != found[2]


def test_the_position_table_of_each_family_limits_the_length(pretrained: dict[str, Path]) -> None:
    limits = {
        family: length_limit(*load_for_training(str(folder), CLASSES), None)
        for family, folder in pretrained.items()
    }
    assert limits == dict.fromkeys(PRETRAINED, 32)  # RoBERTa's has 34 rows


def test_the_least_of_three_limits_counts(pretrained: dict[str, Path]) -> None:
    model, _ = load_for_training(str(pretrained["roberta"]), CLASSES)
    tokenizer = byte_level_tokenizer()
    model.config.max_position_embeddings = 514
    assert length_limit(model, tokenizer, None) == 512
    assert length_limit(model, tokenizer, 128) == 128
    assert length_limit(model, tokenizer, 9999) == 512
    tokenizer.model_max_length = 64
    assert length_limit(model, tokenizer, 128) == 64


def test_token_types_are_for_models_with_more_than_one(pretrained: dict[str, Path]) -> None:
    takes = {
        family: takes_token_types(load_for_training(str(folder), CLASSES)[0])
        for family, folder in pretrained.items()
    }
    taking = {"bert": True, "distilbert": False, "roberta": False, "electra": True, "albert": True}
    assert takes == taking


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def change_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = {name: value.clone() for name, value in load_file(path).items()}
        change(weights)
        save_file(weights, path, {"format": "pt"})

    return rewrite


def remove(*patterns: str) -> Callable[[Path], None]:
    def unlink(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return unlink


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DENSE = "bert.encoder.layer.1.output.dense.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight": (change_weights(lambda w: w.pop(DENSE)), f"1 weights.*{DENSE}.*incomplete"),
    "a layer": (change_config(num_hidden_layers=3), "lacks 16 weights.*layer.2"),
    "shape": (change_config(vocab_size=99), "lacks 1 weights.*word_embeddings"),
    "nan": (change_weights(lambda w: w[DENSE].fill_(torch.nan)), "512 values that are NaN"),
    "cut": (cut_weights, "cannot be loaded: Error while deserializing header"),
    "family": (change_config(model_type="none"), "cannot be loaded.*model type `none`"),
    "config": (spoil_config, "not a valid JSON"),
    "no config": (remove("config.json"), "holds no config.json"),
    "no weights": (remove("model.*"), "holds no weights"),
    "no tokenizer": (remove("tokenizer*", "vocab*"), "holds no tokenizer|cannot be loaded"),
    "quantized": (lambda folder: (folder / "quantkit.json").touch(), "is a quantized checkpoint"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_trained_is_refused_by_name(name: str, folder: Path) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_for_training(str(folder), CLASSES)


@pytest.mark.parametrize("family", PRETRAINED)
def test_a_head_that_is_missing_cannot_be_scored(
    family: str, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    """Said by its name, or, where the configuration names none, by the weights that it lacks."""
    kind = PRETRAINED[family][0].__name__
    with pytest.raises(CheckpointError, match=f"is a {kind};.*quantkit finetune --model"):
        load_float(pretrained[family])
    shutil.copytree(pretrained[family], tmp_path / family)
    change_config(architectures=None)(tmp_path / family)
    with pytest.raises(CheckpointError, match=r"lacks \d weights.*quantkit finetune --model"):
        load_float(tmp_path / family)


def test_a_missing_pooler_matters_where_it_is_used(
    folder: Path, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    without = change_weights(lambda w: [w.pop(name) for name in list(w) if ".pooler." in name])
    without(folder)
    load_for_training(str(folder), CLASSES)
    assert type(load_for_training(str(folder), FEATURES)[0]).__name__ == "BertModel"
    change_config(architectures=["BertModel"])(folder)
    assert type(load_float(folder)[0]).__name__ == "BertModel"
    save_float(*load_for_training(str(pretrained["bert"]), CLASSES), tmp_path / "tuned")
    without(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=r"lacks 2 weights.*bert\.pooler\.dense\.bias"):
        load_float(tmp_path / "tuned")


@pytest.mark.parametrize("load", [load_float, lambda source: load_for_training(source, FEATURES)])
def test_features_need_the_whole_encoder(load: Callable[[str], object], folder: Path) -> None:
    change_config(architectures=["BertModel"])(folder)
    change_weights(lambda w: w.pop(DENSE))(folder)
    with pytest.raises(CheckpointError, match="lacks 1 weights of a BertModel"):
        load(str(folder))


@pytest.mark.parametrize("source", ["/nowhere/model", "./model", "runs/smsa/float"])
def test_a_folder_that_does_not_exist_is_told_from_a_name(source: str) -> None:
    for load in (load_float, lambda name: load_for_training(name, CLASSES)):
        with pytest.raises(CheckpointError, match="no such folder"):
            load(source)


def test_a_name_without_a_network_gives_the_ways_out() -> None:
    with pytest.raises(CheckpointError) as caught:
        load_for_training("indobenchmark/indobert-base-p1", CLASSES)
    message = str(caught.value)
    assert "neither a folder nor in the local Hugging Face cache" in message
    assert "hf download indobenchmark/indobert-base-p1 --local-dir FOLDER" in message
    assert "quantkit run builtin.yaml" in message


def test_a_folder_is_loaded_without_a_look_at_the_network(
    pretrained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("the Hub's address was looked up")

    monkeypatch.setattr("socket.getaddrinfo", refused)
    load_for_training(str(pretrained["bert"]), CLASSES)


# By hand, with a bias to each product: BERT-base 12 layers of 768 with 3,072 between, 512
# positions, 2 types, pooler; DistilBERT 6 such layers, no types, a layer before the classifier.
THREE: dict[str, Any] = {"num_labels": 3}
COUNTS = {
    "bert": (BertConfig(vocab_size=32_000, **THREE), 110_619_651),
    "distilbert": (DistilBertConfig(vocab_size=119_547, **THREE), 135_326_979),
}


@pytest.mark.parametrize("family", COUNTS)
def test_full_sized_models_have_the_known_number_of_parameters(family: str, tmp_path: Path) -> None:
    config, expected = COUNTS[family]
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # weights are not read
    model = untrained(str(tmp_path))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_builtin_model_has_a_row_for_each_token_and_its_head() -> None:
    model = builtin_model(WORDPIECE, CLASSES)
    rows = reachable_rows(WORDPIECE)
    assert rows == len(WORDPIECE.get_vocab())
    assert model.get_input_embeddings().weight.shape == (rows, 256)
    assert label_names(model) == ["low", "high"]
    assert model.config.pad_token_id == WORDPIECE.pad_token_id
