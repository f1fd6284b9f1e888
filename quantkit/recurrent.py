"""Recurrent baselines: what small models without pretraining score on the same line.

Importing this module teaches transformers' `AutoConfig` and
`AutoModelForSequenceClassification` the model type `quantkit_recurrent`.

The layers are Keras' `SimpleRNN` and `LSTM` in weights and initialisation, because the
published baselines were made with Keras. They are written out rather than `nn.RNN` and
`nn.LSTM`, which have two bias vectors where Keras has one, and refuse a text without words;
on a CPU the loop is as fast.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from quantkit.errors import RecipeError
from quantkit.recurrent_slot import Recurrent

__all__ = [
    "Direction",
    "RecurrentConfig",
    "RecurrentForSequenceClassification",
    "build_recurrent",
]

GATES = {"rnn": 1, "lstm": 4}  # of the LSTM: input, forget, candidate, output


class RecurrentConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The `config.json` of a recurrent baseline.

    Args:
        vocab_size: rows of the word table.
        embedding_size: columns of the word table.
        cell: `rnn` (Keras' SimpleRNN) or `lstm`.
        units: of each layer and direction, first layer first.
        bidirectional: whether each layer also reads from right to left.
        padding: `masked` or `unmasked`, see `quantkit.recurrent_slot.Recurrent`.
        padded_length: tokens that an unmasked model reads of every text.
        max_position_embeddings: tokens a text may have, under the name all families use.
        pad_token_id: the row an unmasked model reads behind a text.
        hidden_dropout_prob: of both dropout layers.
    """

    model_type = "quantkit_recurrent"

    def __init__(
        self,
        vocab_size: int = 10_000,
        embedding_size: int = 128,
        cell: Literal["rnn", "lstm"] = "lstm",
        units: Sequence[int] = (64, 32),
        bidirectional: bool = True,
        padding: Literal["masked", "unmasked"] = "masked",
        padded_length: int = 128,
        max_position_embeddings: int = 128,
        pad_token_id: int = 0,
        hidden_dropout_prob: float = 0.1,
        **others: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**others)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.cell = cell
        self.units = list(units)
        self.bidirectional = bidirectional
        self.padding = padding
        self.padded_length = padded_length
        self.max_position_embeddings = max_position_embeddings
        self.hidden_dropout_prob = hidden_dropout_prob
        self.pad_token_id = pad_token_id


class Direction(nn.Module):
    """One layer read in one direction.

    The weights are Keras', transposed: `kernel` [gates * units, inputs], `recurrent_kernel`
    [gates * units, units] and one `bias` [gates * units]; the gates of an LSTM stand in the
    order input, forget, candidate, output.
    """

    def __init__(self, cell: str, inputs: int, units: int, *, reverse: bool) -> None:
        super().__init__()
        rows = GATES[cell] * units
        self.cell, self.units, self.reverse = cell, units, reverse
        self.kernel = nn.Parameter(torch.empty(rows, inputs))
        self.recurrent_kernel = nn.Parameter(torch.empty(rows, units))
        self.bias = nn.Parameter(torch.empty(rows))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The states after each step, and the state after the last one.

        Args:
            x: float [batch, steps, inputs].
            lengths: int64 [batch]; steps from there on leave a row's state as it is.

        Returns:
            [batch, steps, units] and [batch, units].
        """
        # Unbound at once: a slice per step would give each one a gradient of the whole.
        steps = list(enumerate(F.linear(x, self.kernel, self.bias).unbind(1)))
        hidden = x.new_zeros(len(x), self.units)
        memory, outputs = hidden, list[Tensor]()
        for at, drive in reversed(steps) if self.reverse else steps:
            reads = (at < lengths)[:, None]
            new_hidden, new_memory = self._step(drive, hidden, memory)
            hidden = torch.where(reads, new_hidden, hidden)
            memory = torch.where(reads, new_memory, memory)
            outputs.append(hidden)
        if self.reverse:
            outputs.reverse()
        states = torch.stack(outputs, 1) if outputs else x.new_zeros(len(x), 0, self.units)
        return states, hidden

    def reset(self) -> None:
        """Keras' initial values: Glorot, orthogonal, zeros, and ones where an LSTM forgets."""
        nn.init.xavier_uniform_(self.kernel)
        nn.init.orthogonal_(self.recurrent_kernel)
        nn.init.zeros_(self.bias)
        if self.cell == "lstm":
            nn.init.ones_(self.bias[self.units : 2 * self.units])

    def extra_repr(self) -> str:
        """Cell, width and direction, as `print(model)` shows them."""
        return f"{self.cell}, units={self.units}, reverse={self.reverse}"

    def _step(self, drive: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden state and memory [batch, units]; an RNN has no memory."""
        total = torch.addmm(drive, hidden, self.recurrent_kernel.T)
        if self.cell == "rnn":
            return torch.tanh(total), memory
        enter, forget, candidate, leave = total.chunk(4, 1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
        return torch.sigmoid(leave) * torch.tanh(memory), memory


class RecurrentModel(nn.Module):
    """Embedding, dropout and the stacked layers."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.embeddings = nn.Sequential(
            OrderedDict(
                word_embeddings=nn.Embedding(config.vocab_size, config.embedding_size),
                dropout=nn.Dropout(config.hidden_dropout_prob),
            )
        )
        directions = (False, True) if config.bidirectional else (False,)
        self.layers = nn.ModuleList()
        self.outputs = config.embedding_size  # width of what `forward` returns
        for units in config.units:
            self.layers.append(
                nn.ModuleList(
                    Direction(config.cell, self.outputs, units, reverse=reverse)
                    for reverse in directions
                )
            )
            self.outputs = len(directions) * units

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The last states of the last layer, left to right first: [batch, outputs]."""
        x: Tensor = self.embeddings(ids)
        last: tuple[Tensor, ...] = ()
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            states, last = zip(*(direction(x, lengths) for direction in layer), strict=True)
            x = torch.cat(states, -1)
        return torch.cat(last, -1)


class RecurrentForSequenceClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A recurrent baseline with its head, called and saved as transformers' classifiers are."""

    config: RecurrentConfig
    config_class = RecurrentConfig
    base_model_prefix = "recurrent"
    main_input_name = "input_ids"

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.recurrent = RecurrentModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.recurrent.outputs, len(config.id2label or ()))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: object,
    ) -> SequenceClassifierOutput:
        """Logits [batch, classes], and with `labels` [batch] their mean cross-entropy.

        Args:
            input_ids: int64 [batch, tokens], padded on the right.
            attention_mask: int64 [batch, tokens], 1 for a token; default: ones.
            labels: int64 [batch].
            _: `token_type_ids` and the like, which these models do not read.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, lengths = _what_is_read(self.config, input_ids, mask)
        logits = self.classifier(self.dropout(self.recurrent(ids, lengths)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """Keras' initial values."""
        if isinstance(module, Direction):
            module.reset()
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.05, 0.05)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def build_recurrent(
    slot: Recurrent,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    *,
    max_length: int,
    padded_length: int,
) -> RecurrentForSequenceClassification:
    """An untrained model; torch's global generator decides its weights.

    Args:
        slot: the recipe's.
        tokenizer: gives the rows of the word table; see `quantkit.data.vocabulary`.
        labels: the classes, in the order of their ids.
        max_length: tokens a text may have.
        padded_length: tokens that `padding: unmasked` reads of every text.

    Raises:
        RecipeError: an unmasked model that would not read texts to their end.
    """
    if slot.padding == "unmasked" and padded_length < max_length:
        raise RecipeError(
            f"An unmasked model reads {padded_length} tokens of each text, and max_length allows "
            f"{max_length}. Lower max_length, or raise the padded length to at least that."
        )
    names = dict(enumerate(labels))
    config = RecurrentConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        embedding_size=slot.embedding,
        cell=slot.cell,
        units=slot.units,
        bidirectional=slot.bidirectional,
        padding=slot.padding,
        padded_length=padded_length,
        max_position_embeddings=max_length,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        num_labels=len(labels),
        id2label=names,
        label2id={label: index for index, label in names.items()},
    )
    return RecurrentForSequenceClassification(config)


def _what_is_read(config: RecurrentConfig, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The ids [batch, steps] that a model reads, and how many of each row [batch].

    Unmasked, that is `padded_length` whatever the batch: neighbours must not change an answer.
    """
    if config.padding == "masked":
        return ids, mask.sum(1)
    pad = int(config.pad_token_id or 0)
    ids = F.pad(
        ids.masked_fill(mask == 0, pad), (0, config.padded_length - ids.shape[1]), value=pad
    )
    return ids, torch.full_like(ids[:, 0], config.padded_length)


AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    RecurrentConfig, RecurrentForSequenceClassification, exist_ok=True
)
