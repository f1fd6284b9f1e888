"""The mathematics of distillation against its restatement, by hand, and where it is 0."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quantkit.batching import IGNORED
from quantkit.distill import (
    hidden_distances,
    labels_per_row,
    logits_distance,
    relation_distances,
    teacher_layers,
)
from quantkit.heads import Head
from tests.reference import distillation as reference
from tests.training import ASPECTS, CLASSES, FEATURES, MULTILABEL, REGRESSION, TRAINABLE, WORDS

LENGTHS = (5, 2, 7)  # tokens of three texts in one batch


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    return torch.tensor([[1] * tokens + [0] * (7 - tokens) for tokens in LENGTHS])


def texts(values: Tensor) -> list[np.ndarray]:
    """The rows without their padding."""
    return [row[:tokens].numpy() for row, tokens in zip(values, LENGTHS, strict=True)]


def labels_of(head: Head) -> Tensor:
    match head.kind:
        case "words":
            labels = torch.zeros(3, 7, dtype=torch.int64)
            labels[mask() == 0] = IGNORED
            labels[:, 0] = IGNORED
            return labels
        case "regression":
            return torch.zeros(3)
    shape = {"aspects": (3, 2), "multilabel": (3, 3)}.get(head.kind, (3,))
    return torch.zeros(shape, dtype=torch.int64)


def answers(head: Head, seed: int) -> Tensor:
    return drawn(*((3, 7) if head.kind == "words" else (3,)), head.outputs, seed=seed)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("head", TRAINABLE, ids=lambda head: head.kind)
def test_logits_are_held_against_the_teachers(head: Head, temperature: float) -> None:
    student, teacher = answers(head, 1), answers(head, 2)
    labels = labels_of(head)
    found = float(logits_distance(head, student, teacher, labels, temperature))
    a, b = student.numpy(), teacher.numpy()
    match head.kind:
        case "multilabel":
            expected = reference.outcomes(a, b, temperature)
        case "regression":
            expected = float(np.square(a - b).sum())
        case "words":
            kept = (labels != IGNORED).numpy()
            expected = reference.classes(a[kept], b[kept], temperature)
        case _:
            width = len(head.labels)
            expected = reference.classes(a.reshape(-1, width), b.reshape(-1, width), temperature)
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(logits_distance(head, teacher, teacher, labels, temperature)) == 0.0


def test_logits_by_hand() -> None:
    """The teacher says 3 to 1, the student 1 to 1: 0.75 ln 1.5 + 0.25 ln 0.5 = 0.1308."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    labels = torch.zeros(1, dtype=torch.int64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert expected == pytest.approx(0.1308, abs=1e-4)
    found = logits_distance(CLASSES, student, teacher, labels, 1.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    # At T = 2 the teacher's odds are those of sqrt 3 to 1, and the result is 4 times the KL.
    odds = math.sqrt(3.0) / (1.0 + math.sqrt(3.0))
    warm = 4.0 * (odds * math.log(2.0 * odds) + (1.0 - odds) * math.log(2.0 * (1.0 - odds)))
    found = logits_distance(CLASSES, student, teacher, labels, 2.0)
    assert float(found) == pytest.approx(warm, rel=1e-5)
    one = logits_distance(MULTILABEL, student[:, :1], teacher[:, :1], labels[None], 1.0)
    assert float(one) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_at_high_temperatures_is_that_of_a_squared_error() -> None:
    """Hinton et al. 2015, equation 4: T^2 makes it (z - v) / N, whatever T is."""
    teacher = torch.tensor([[1.0, -1.0]])
    student = torch.zeros(1, 2, requires_grad=True)
    logits_distance(CLASSES, student, teacher, torch.zeros(1).long(), 1000.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 2, rtol=1e-3, atol=0.0)


def test_features_have_no_logits() -> None:
    with pytest.raises(ValueError, match="features has no logits"):
        logits_distance(FEATURES, drawn(3, 4), drawn(3, 4), torch.zeros(3), 1.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_hidden_states_without_the_padding(normalize: bool) -> None:
    student, teacher = drawn(3, 7, 8, seed=1), 3.0 * drawn(3, 7, 8, seed=2)
    found = hidden_distances(student, teacher, mask(), normalize=normalize)
    expected = reference.hidden(texts(student), texts(teacher), normalize)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    student[mask() == 0] = 1e3
    assert torch.equal(hidden_distances(student, teacher, mask(), normalize=normalize), found)
    same = hidden_distances(teacher, teacher, mask(), normalize=normalize)
    assert same.tolist() == [0.0] * 3


def test_hidden_states_by_hand() -> None:
    """One token (1, 3) against (0, 0): 5. Normalized it is (-1, 1), and (0, 0) stays: 1."""
    student, teacher = torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2)
    one = torch.ones(1, 1)
    assert hidden_distances(student, teacher, one, normalize=False).tolist() == [5.0]
    found = hidden_distances(student, teacher, one, normalize=True)
    assert found.tolist() == pytest.approx([1.0], rel=1e-4)
    scaled = hidden_distances(7.0 * student + 2.0, student, one, normalize=True)
    assert scaled.tolist() == pytest.approx([0.0], abs=1e-9)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("width", [8, 12])
def test_relations_between_tokens_without_the_padding(heads: int, width: int) -> None:
    """Student and teacher need not be of one width."""
    student, teacher = drawn(3, 7, 8, seed=1), drawn(3, 7, width, seed=2)
    found = relation_distances(student, teacher, mask(), heads)
    expected = reference.relations(texts(student), texts(teacher), heads)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    student[mask() == 0], teacher[mask() == 0] = 1e3, -1e3
    torch.testing.assert_close(relation_distances(student, teacher, mask(), heads), found)
    assert relation_distances(teacher, teacher, mask(), heads).tolist() == [0.0] * 3


def test_relations_by_hand() -> None:
    """Two tokens at a right angle; those of the student are the same one twice."""
    length = 2.0**0.25 * math.sqrt(math.log(3.0))  # so that x x^T / sqrt 2 is ln 3
    teacher = length * torch.eye(2)[None]
    student = torch.zeros(1, 2, 2)
    found = relation_distances(student, teacher, torch.ones(1, 2), 1)
    assert found.tolist() == pytest.approx([0.1308], abs=1e-4)


def test_a_text_that_is_all_padding_but_one_token_has_a_gradient() -> None:
    student = drawn(1, 3, 4).requires_grad_()
    seen = torch.tensor([[1, 0, 0]])
    relation_distances(student, drawn(1, 3, 4, seed=1), seen, 2).sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@given(st.integers(1, 24), st.integers(0, 24))
def test_layers_are_spread_evenly_and_the_last_is_held_against_the_last(
    student: int, more: int
) -> None:
    teacher = student + more
    places = teacher_layers(student, teacher)
    assert len(places) == student
    assert list(places) == sorted(set(places))
    assert (places[0] >= 0, places[-1]) == (True, teacher - 1)


@pytest.mark.parametrize(
    ("student", "teacher", "places"),
    [(3, 6, (1, 3, 5)), (3, 5, (1, 3, 4)), (2, 2, (0, 1)), (6, 12, (1, 3, 5, 7, 9, 11))],
)
def test_layers_by_hand(student: int, teacher: int, places: tuple[int, ...]) -> None:
    assert teacher_layers(student, teacher) == places


def test_labels_are_counted_by_row() -> None:
    assert labels_per_row(labels_of(CLASSES)).tolist() == [1, 1, 1]
    assert labels_per_row(labels_of(ASPECTS)).tolist() == [2, 2, 2]
    assert labels_per_row(labels_of(MULTILABEL)).tolist() == [3, 3, 3]
    assert labels_per_row(labels_of(REGRESSION)).tolist() == [1, 1, 1]
    assert labels_per_row(labels_of(WORDS)).tolist() == [4, 1, 6]
