"""What a student's outputs lack to its teacher's: the mathematics of distillation.

Pure functions of tensors; where they come from is `teacher`'s business. All of them are 0 where
student and teacher are the same, and computed in float32. They give a value per label or per row,
never a mean over a batch, so that a batch may be divided into parts.

Logits: Hinton et al. 2015, section 2. Layers' outputs: Sun et al. 2019 (patient distillation),
Jiao et al. 2020 (TinyBERT), equation 8. Relations: Wang et al. 2021 (MiniLMv2), section 3.
"""

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from quantkit.batching import IGNORED
from quantkit.heads import Head

__all__ = [
    "hidden_distances",
    "labels_per_row",
    "logits_distance",
    "relation_distances",
    "teacher_layers",
]


def logits_distance(
    head: Head, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """The sum over all labels of how far the student's answers are from the teacher's.

    classification, aspects and words: T^2 * KL(softmax(teacher / T) || softmax(student / T));
    the factor keeps the gradient's size whatever T is (Hinton et al. 2015, section 2.1).
    multilabel: the same of each label's two outcomes; regression: the squared error. With T = 1, a
    teacher of logits (ln 3, 0) and a student of (0, 0): 0.75 ln 1.5 + 0.25 ln 0.5 = 0.1308.

    Args:
        head: what the logits mean.
        student: [rows, outputs], or [rows, tokens, labels] for words.
        teacher: of the same shape.
        labels: as `collate` makes them; tells which tokens have a label.
        temperature: T, above 0.

    Raises:
        ValueError: the head has no logits (features).
    """
    student, teacher = student.float(), teacher.float()
    if head.kind == "regression":
        return torch.square(student[..., 0] - teacher[..., 0]).sum()
    student, teacher = student / temperature, teacher / temperature
    if head.kind == "multilabel":
        probability = torch.sigmoid(teacher)
        yes = F.logsigmoid(teacher) - F.logsigmoid(student)
        no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
        return temperature**2 * (probability * yes + (1.0 - probability) * no).sum()
    if head.kind not in ("classification", "words", "aspects"):
        raise ValueError(f"a head of kind {head.kind} has no logits")
    classes = len(head.labels)
    divergences = _divergences(student.reshape(-1, classes), teacher.reshape(-1, classes))
    return temperature**2 * divergences[labels.reshape(-1) != IGNORED].sum()


def hidden_distances(student: Tensor, teacher: Tensor, mask: Tensor, *, normalize: bool) -> Tensor:
    """Of each row, the mean squared error of one layer's output, over its tokens and channels.

    Args:
        student: [rows, tokens, width].
        teacher: of the same shape.
        mask: [rows, tokens], 1 for a token and 0 for padding.
        normalize: give each token's vector mean 0 and variance 1 first. Two vectors that have
            nothing to do with each other are then 2 apart, whatever the layer's scale is.

    Returns:
        float32 [rows].
    """
    student, teacher = student.float(), teacher.float()
    if normalize:
        width = student.shape[-1:]
        student, teacher = F.layer_norm(student, width), F.layer_norm(teacher, width)
    return _mean_over_tokens(torch.square(student - teacher).mean(-1), mask)


def relation_distances(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Of each row, how far the relations between its tokens are from the teacher's.

    The relations of a token are a distribution over the tokens: softmax(x x^T / sqrt(d)) of each
    relation head, a slice of d channels. The distance is KL(teacher || student), the mean over
    heads and tokens. The widths may differ, as long as `heads` divides both.

    Args:
        student: queries, keys or values [rows, tokens, width].
        teacher: the same of the teacher, [rows, tokens, its width].
        mask: [rows, tokens], 1 for a token and 0 for padding.
        heads: relation heads; they need not be the attention's.

    Returns:
        float32 [rows].
    """
    seen = mask.bool()[:, None, None, :]
    ours, theirs = (_relations(each, heads, seen) for each in (student, teacher))
    # What padding is asked of has probability 0, and log 0 - log 0 would be NaN.
    apart = torch.where(seen, theirs - ours, 0.0)
    divergence = (theirs.exp() * apart).sum(-1).mean(1)
    return _mean_over_tokens(divergence, mask)


def labels_per_row(labels: Tensor) -> Tensor:
    """How many labels each row has, float32 [rows]: what a row's distance counts for."""
    flat = labels.reshape(len(labels), -1)
    return (flat != IGNORED).sum(1).float() if flat.dtype == torch.int64 else _ones(flat)


def teacher_layers(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer, from 0, that each of the student's is held against.

    Evenly spread, and the last against the last: 3 layers of 6 give 1, 3, 5; 6 of 6 all.
    """
    return tuple(-(-(layer + 1) * teacher // student) - 1 for layer in range(student))


def _divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dimension."""
    ours, theirs = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _relations(vectors: Tensor, heads: int, seen: Tensor) -> Tensor:
    """Logarithms of the relations [rows, heads, tokens, tokens]."""
    parts = vectors.float().reshape(*vectors.shape[:2], heads, -1).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / sqrt(parts.shape[-1])
    return F.log_softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), -1)


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Means [rows] of values [rows, tokens] without the padding."""
    kept = mask.to(values.dtype)
    return (values * kept).sum(-1) / kept.sum(-1)


def _ones(flat: Tensor) -> Tensor:
    return torch.full((len(flat),), float(flat.shape[1]), device=flat.device)
