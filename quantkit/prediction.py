"""What a torch model says about encoded rows."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from quantkit.batching import Encoded, collate, ordered_batches
from quantkit.errors import DataError
from quantkit.losses import loss_sum

__all__ = ["Outputs", "mean_loss", "outputs_of", "padded_batches", "predict", "predict_windows"]

Outputs = np.ndarray | list[np.ndarray]  # see `predict`

BATCH_SIZE = 32


def predict(
    model: nn.Module, encoded: Encoded, *, pad_token_id: int, batch_size: int = BATCH_SIZE
) -> Outputs:
    """The model's outputs on all rows, in their order; `model` keeps its train mode.

    Returns:
        float32 [rows, outputs]; for words a list of [words, labels]; for features
        [rows, hidden], the mean over the tokens.

    Raises:
        DataError: no rows.
    """
    if not len(encoded):
        raise DataError("There are no rows to predict. Check the split of the dataset.")
    batches = ordered_batches(encoded.lengths(), batch_size)
    return outputs_of(encoded, predict_windows(model, encoded, batches, pad_token_id))


def padded_batches(
    encoded: Encoded, pad_token_id: int, batch_size: int = BATCH_SIZE
) -> Iterator[dict[str, Tensor]]:
    """The batches that `predict` runs, in its order."""
    for indices in ordered_batches(encoded.lengths(), batch_size):
        yield collate(encoded, indices, pad_token_id)


def predict_windows(
    model: nn.Module, encoded: Encoded, batches: Sequence[Sequence[int]], pad_token_id: int
) -> dict[int, np.ndarray]:
    """Outputs of the windows in `batches`, by window; for words without the padding."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for indices in batches:
            batch = collate(encoded, indices, pad_token_id)
            inputs = {name: batch[name].to(device) for name in batch if name != "labels"}
            values = _values(encoded, model(**inputs), batch["attention_mask"])
            for row, index in enumerate(indices):
                tokens = len(encoded.ids[index])
                found[index] = values[row, :tokens] if values.ndim == 3 else values[row]
    model.train(was_training)
    return found


def outputs_of(encoded: Encoded, windows: Mapping[int, np.ndarray]) -> Outputs:
    """Windows' outputs as rows' outputs."""
    values = [windows[index] for index in range(len(encoded))]
    return np.stack(values) if encoded.words is None else encoded.by_row(values)


def mean_loss(encoded: Encoded, outputs: Outputs) -> float:
    """The loss per label of all rows."""
    references = encoded.references()
    if isinstance(outputs, np.ndarray):
        logits, labels = outputs, np.asarray(references)
    else:
        logits = np.concatenate(outputs)
        labels = np.concatenate([np.asarray(row) for row in references])
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
    total = loss_sum(encoded.head, torch.from_numpy(logits), torch.from_numpy(labels))
    return float(total) / max(1, labels.size)


def _values(encoded: Encoded, answer: object, mask: Tensor) -> np.ndarray:
    """float32 on the CPU: logits, or for features the mean over the tokens."""
    if encoded.head.kind != "features":
        logits: Tensor = getattr(answer, "logits")  # noqa: B009
        return logits.float().cpu().numpy()
    hidden: Tensor = getattr(answer, "last_hidden_state")  # noqa: B009
    kept = mask.to(hidden.device)[..., None]
    return ((hidden.float() * kept).sum(1) / kept.sum(1)).cpu().numpy()
