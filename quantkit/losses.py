"""What training minimises, by kind of head: sums, so that any division into parts adds up."""

import torch
from torch import Tensor
from torch.nn import functional as F

from quantkit.batching import IGNORED
from quantkit.heads import Head

__all__ = ["loss_sum"]


def loss_sum(head: Head, logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses of all labels in a batch, a float32 scalar.

    A mean over a batch is this divided by the number of labels in it (`Encoded.count`). For
    data-parallel training and gradient accumulation that number is the whole batch's, so
    that a part with few labels counts for few.

    classification, aspects and words: cross-entropy, two equal logits give ln 2 = 0.6931;
    multilabel: binary cross-entropy of each label; regression: squared error.

    Shapes: logits [rows, outputs], or [rows, tokens, labels] for words; labels as `collate`
    makes them.

    Raises:
        ValueError: the head has no loss (features).
    """
    logits = logits.float()
    if head.kind in ("classification", "words", "aspects"):
        flat = logits.reshape(-1, len(head.labels))
        return F.cross_entropy(flat, labels.reshape(-1), reduction="sum", ignore_index=IGNORED)
    if head.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
    if head.kind == "regression":
        return torch.square(logits[..., 0] - labels.to(logits.dtype)).sum()
    raise ValueError(f"a head of kind {head.kind} has no loss")
