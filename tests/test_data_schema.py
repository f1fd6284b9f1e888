"""The columns of every kind of task, what is refused on the way in, and what comes out."""

from dataclasses import replace

import numpy as np
import pytest

from quantkit.data import TaskData, inputs_of, references_of
from quantkit.data.schema import SPLITS, Example, build_task
from quantkit.errors import DataError
from quantkit.heads import Head

SENTIMENT = Head("classification", ("positive", "negative"))
ASPECTS = Head("aspects", ("neg", "neut", "pos"), ("ac", "wifi"))
TOPICS = Head("multilabel", ("food", "price", "place"))
SCORE = Head("regression")
ENTITIES = Head("words", ("O", "B-PER", "I-PER"))
VECTORS = Head("features")

TRAIN = {
    "classification": [Example("r:1", "enak", "positive"), Example("r:2", "basi", "negative")],
    "aspects": [Example("r:1", "enak", ["neg", "pos"]), Example("r:2", "basi", ["pos", "pos"])],
    "multilabel": [Example("r:1", "enak", ["price", "food"]), Example("r:2", "basi", [])],
    "regression": [Example("r:1", "enak", "4.5"), Example("r:2", "basi", 1)],
    "words": [Example("r:1", ["Joko", "Widodo"], ["B-PER", "I-PER"]), Example("r:4", ["ia"], "O")],
    "features": [Example("r:1", "enak"), Example("r:2", "basi")],
}


Bad = tuple[str | list[str], str | list[str] | None]


def task_of(head: Head, train: list[Example] | None = None) -> TaskData:
    rows = TRAIN[head.kind] if train is None else train
    sources = {split: f"{split}.tsv" for split in SPLITS}
    return build_task("t", head, dict.fromkeys(SPLITS, rows), sources, ("a note",))


@pytest.mark.parametrize(
    ("head", "columns", "labels"),
    [
        (SENTIMENT, ["text", "label"], [0, 1]),
        (ASPECTS, ["text", "label"], [[0, 2], [2, 2]]),
        (TOPICS, ["text", "label"], [[1, 1, 0], [0, 0, 0]]),
        (SCORE, ["text", "label"], [4.5, 1.0]),
        (ENTITIES, ["tokens", "label"], [[1, 2], [0]]),
    ],
    ids=lambda value: value.kind if isinstance(value, Head) else "",
)
def test_columns_and_ids_follow_the_head(
    head: Head, columns: list[str], labels: list[object]
) -> None:
    task = task_of(head)
    assert (task.name, task.labels, task.notes) == ("t", head.labels, ("a note",))
    for split in SPLITS:
        assert task.splits[split].column_names == columns
        assert list(task.splits[split]["label"]) == labels


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (SENTIMENT, np.array([0, 1])),
        (ASPECTS, np.array([[0, 2], [2, 2]])),
        (TOPICS, np.array([[1, 1, 0], [0, 0, 0]])),
        (SCORE, np.array([4.5, 1.0])),
        (VECTORS, np.empty(0)),
    ],
    ids=lambda value: value.kind if isinstance(value, Head) else "",
)
def test_references_are_arrays(head: Head, expected: np.ndarray) -> None:
    found = references_of(task_of(head).splits["test"], head)
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_references_of_words_are_an_array_per_sentence() -> None:
    found = references_of(task_of(ENTITIES).splits["test"], ENTITIES)
    assert [(part.dtype, part.tolist()) for part in found] == [("int64", [1, 2]), ("int64", [0])]


@pytest.mark.parametrize("head", [SENTIMENT, ASPECTS, TOPICS, SCORE])
def test_references_of_no_rows(head: Head) -> None:
    found = references_of(task_of(head).splits["test"].select([]), head)
    width = {"aspects": (2,), "multilabel": (3,)}.get(head.kind, ())
    assert isinstance(found, np.ndarray)
    assert found.shape == (0, *width)


def test_inputs_of_texts_pairs_words_and_questions() -> None:
    texts = inputs_of(task_of(VECTORS).splits["train"], VECTORS)
    assert (list(texts.first), texts.second) == (["enak", "basi"], None)

    pairs = [replace(row, second="lain") for row in TRAIN["classification"]]
    task = task_of(SENTIMENT, pairs)
    inputs = inputs_of(task.splits["train"], SENTIMENT)
    assert task.splits["train"].column_names == ["text", "text_pair", "label"]
    assert list(inputs.first) == ["enak", "basi"]
    assert list(inputs.second or []) == ["lain", "lain"]

    passages = [replace(row, second=["siapa", "?"]) for row in TRAIN["words"]]
    task = task_of(ENTITIES, passages)
    inputs = inputs_of(task.splits["train"], ENTITIES)
    assert task.splits["train"].column_names == ["tokens", "question", "label"]
    assert list(inputs.first[:1]) == [["Joko", "Widodo"]]
    assert list(inputs.second or []) == [["siapa", "?"]] * 2


@pytest.mark.parametrize(
    ("head", "bad", "message"),
    [
        (SENTIMENT, ("x", "Negativ"), r"unknown label 'Negativ'.*Did you mean 'negative'\?$"),
        (SENTIMENT, ("x", "zzz"), r"unknown label 'zzz'. Known labels: positive, negative\.$"),
        (SENTIMENT, (" \t", "positive"), r"the text is empty"),
        (SENTIMENT, ("a\0b", "positive"), r"the text holds a NUL character"),
        (SENTIMENT, ("é\ud83d", "positive"), r"the text holds half a surrogate pair"),
        (SENTIMENT, ("x", "positive", ""), r"the text_pair is empty"),
        (ASPECTS, ("x", ["neg"]), r"2 aspects but 1 labels"),
        (ASPECTS, ("x", ["neg", "Pos"]), r"'wifi' has an unknown label 'Pos'.*mean 'pos'"),
        (TOPICS, ("x", ["price", "prise"]), r"unknown label 'prise'.*Did you mean 'price'"),
        (SCORE, ("x", "empat"), r"the label is 'empat'. A regression label is a finite number"),
        (SCORE, ("x", "nan"), r"the label is 'nan'"),
        (SCORE, ("x", None), r"the label is None"),
        (ENTITIES, (["a", "b"], ["O"]), r"2 words but 1 labels"),
        (ENTITIES, (["a"], ["b-per"]), r"'a' has an unknown label 'b-per'.*Did you mean 'B-PER'"),
        (ENTITIES, ([], []), r"the sentence has no words"),
        (ENTITIES, (["a", ""], ["O", "O"]), r"word 2 of the sentence is empty"),
        (ENTITIES, (["a\0"], ["O"]), r"the sentence holds a NUL character"),
        (ENTITIES, (["a"], ["O"], []), r"the question has no words"),
    ],
)
def test_bad_rows_are_refused_with_their_line(head: Head, bad: Bad, message: str) -> None:
    with pytest.raises(DataError, match=f"^f.tsv:7: {message}"):
        task_of(head, [*TRAIN[head.kind], Example("f.tsv:7", *bad)])


def test_a_split_without_rows_is_refused() -> None:
    rows = {**dict.fromkeys(SPLITS, TRAIN["classification"]), "test": []}
    with pytest.raises(DataError, match=r"^test.tsv holds no rows"):
        build_task("t", SENTIMENT, rows, {split: f"{split}.tsv" for split in SPLITS})


@pytest.mark.parametrize("head", [SENTIMENT, ASPECTS, TOPICS, SCORE])
def test_one_answer_only_is_nothing_to_learn(head: Head) -> None:
    with pytest.raises(DataError, match=r"^train.tsv: every row .* nothing to learn"):
        task_of(head, TRAIN[head.kind][:1] * 3)


def test_one_label_for_all_words_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match=r"^train.tsv: every word .* nothing to learn"):
        task_of(ENTITIES, [Example("r:1", ["a", "b"], ["O", "O"])])
