"""Tests (a) and (b) of the parity gate: each piece of the file against the model's own.

Every piece is fed the file's own values, so an error cannot hide behind an earlier one and
a rounding flip cannot spread.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quantkit.encoder import EncoderPlan, SharedInput
from quantkit.exporter.form import FileForm, integer_modules, reads_codes
from quantkit.exporter.names import attention_name, codes_name, product_name, token_scale_name
from quantkit.modules import QuantLinear, TokenQuantizer

__all__ = ["BlockErrors", "check_blocks"]

UNIT = 2.0**-24  # float32's unit roundoff
# Of a product of dequantized numbers, beside the additions: of both factors (a two-level scale
# is itself a product), their product, the bias, and the reference's own.
ROUNDINGS = 8

_FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


@dataclass
class BlockErrors:
    """The worst errors so far."""

    products: int = 0
    inexact_products: int = 0
    relative_error: float = 0.0
    code_distance: int = 0
    code_share: float = 0.0

    def floats(self, found: np.ndarray, expected: Tensor, explained: float = 0.0) -> None:
        """Compare a float value: largest difference over largest magnitude.

        `explained` is a difference that any computation in float32 may have here.
        """
        reference = expected.detach().numpy()
        if found.shape != reference.shape:  # one that spreads over the other proves nothing
            self.relative_error = np.inf
            return
        scale = float(np.abs(reference).max()) or 1.0
        error = (float(np.abs(found - reference).max()) - explained) / scale
        # NaN compares false with everything: count it as infinitely wrong.
        self.relative_error = max(self.relative_error, error if error == error else np.inf)  # noqa: PLR0124

    def products_of(self, found: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
        """Test (a): count the products, and those that are further off than `bound`."""
        self.products += found.size
        # NaN is within no bound.
        self.inexact_products += int((~(np.abs(found - expected) <= bound)).sum())

    def codes(self, found: np.ndarray, expected: Tensor) -> None:
        """Compare codes: how far, and in what share of places, one place set aside.

        Tokens whose codes are all alike count once: where a text repeats one token, and RoBERTa
        gives a token with its padding's id no position, one flip is in all of them.
        """
        both = np.stack([found, expected.numpy()]).astype(np.int32)  # [2, ..., in]
        rows = np.unique(np.moveaxis(both, 0, -2).reshape(-1, 2 * both.shape[-1]), axis=0)
        distance = np.abs(np.subtract(*np.split(rows, 2, axis=1)))
        self.code_distance = max(self.code_distance, int(distance.max()))
        # One flip in the few hundred codes of a short text would be more than 0.1 %.
        others = max(0, int((distance > 0).sum()) - 1)
        self.code_share = max(self.code_share, others / distance.size)


@dataclass(frozen=True)
class _File:
    """What one batch made of a file, and where errors are counted."""

    model: PreTrainedModel
    plan: EncoderPlan
    form: FileForm
    values: dict[str, np.ndarray]
    errors: BlockErrors

    def product(self, shared: SharedInput, x: Tensor) -> Tensor:
        """The file's own product, after test (a) on it and its codes, which `x` should give."""
        found = self.values[product_name(shared)]
        if reads_codes(self.model, shared):
            expected, bound = self.exact_product(shared, x)
            self.errors.products_of(found, expected, bound)
        else:
            outputs = [self.model.get_submodule(name)(x) for name in shared.linears]
            self.errors.floats(found, torch.cat(outputs, dim=-1))
        return torch.from_numpy(found)

    def norm(self, name: str, x: Tensor) -> np.ndarray:
        """The file's own normalised `x`, held against the model's."""
        self.errors.floats(self.values[name], self.model.get_submodule(name)(x))
        return self.values[name]

    def exact_product(self, shared: SharedInput, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Holds the codes of `x` against the file's; the merged product of the file's codes.

        Beside it, how far the file may be off: not at all, or where it multiplies dequantized
        numbers as far as any order of float32 additions can be (Higham 2002, section 3.1).
        """
        modules = integer_modules(self.model, shared)
        quantizer = modules[0].input_quantizer
        if quantizer is None:
            raise TypeError(f"{shared.linears[0]} reads floats")
        expected, scales, zero_point = quantizer(x)
        codes = self.values[codes_name(shared)]
        if codes.dtype == np.int8:  # around 0, where the model's are around its zero point
            codes = codes.astype(np.int16) + int(zero_point)
        self.errors.codes(codes, expected)
        scale = scales.numpy()
        if isinstance(quantizer, TokenQuantizer):
            scale = self.values[token_scale_name(shared)]
            self.errors.floats(scale, scales)
        centred = codes.astype(np.float64) - float(zero_point)
        parts = [_exact_product(centred, scale, module) for module in modules]
        product = np.concatenate(parts, axis=-1)
        if codes_name(shared) not in self.form.dequantized:
            return product, np.zeros(1)
        sizes = [_size(centred, scale, module) for module in modules]
        return product, np.concatenate(sizes, axis=-1) * (centred.shape[-1] + ROUNDINGS) * UNIT


@torch.inference_mode()
def check_blocks(
    model: PreTrainedModel,
    plan: EncoderPlan,
    form: FileForm,
    arrays: dict[str, np.ndarray],
    values: dict[str, np.ndarray],
    errors: BlockErrors,
) -> None:
    """Hold every tapped value of one batch against what the model makes of its inputs."""
    file = _File(model, plan, form, values, errors)
    hidden = values[plan.embedding.norm]
    errors.floats(hidden, _embedded(model, plan, arrays))
    if (projection := plan.embedding.projection) is not None:
        hidden = file.product(projection, torch.from_numpy(hidden)).numpy()
    mask = torch.from_numpy(arrays["attention_mask"]).bool()
    for number in range(len(plan.layers)):
        hidden = _check_layer(file, number, torch.from_numpy(hidden), mask)
    _check_head(file, torch.from_numpy(hidden))


def _check_head(file: _File, hidden: Tensor) -> None:
    """What stands on the last layer, and the file's output."""
    head = file.plan.head
    if head.dense is not None and head.function is not None:
        hidden = _FUNCTIONS[head.function](file.product(head.dense, hidden))
    if head.classifier is not None:
        hidden = file.product(head.classifier, hidden)
    output = file.values[file.plan.output]
    file.errors.floats(output, hidden[:, 0] if head.kind == "sequence" else hidden)


def _check_layer(file: _File, number: int, hidden: Tensor, mask: Tensor) -> np.ndarray:
    """One layer, from its input to its output, both the file's own."""
    layer = file.plan.layers[number]
    read = slice(1 if file.plan.narrows(number) else None)
    merged = file.product(layer.query_key_value, hidden)
    # Wide scores make softmax ill-conditioned: at |score| 400, float32 is off by 1e-5 in torch.
    exact = _attention(merged.double(), mask, file.plan.heads)[:, read]
    own = float((_attention(merged, mask, file.plan.heads)[:, read] - exact).abs().max())
    context = file.values[attention_name(layer)][:, read]
    file.errors.floats(context, exact, explained=own)
    projected = file.product(layer.attention_output, torch.from_numpy(context))
    middle = torch.from_numpy(file.norm(layer.attention_norm, projected + hidden[:, read]))
    active = file.model.get_submodule(layer.activation)(file.product(layer.intermediate, middle))
    return file.norm(layer.output_norm, file.product(layer.output, active) + middle)


def _exact_product(centred: np.ndarray, scale: np.ndarray, module: QuantLinear) -> np.ndarray:
    """Test (a)'s reference, in NumPy: the accumulator is exact in float64, below 2**53."""
    accumulator = centred @ module.integers.wide().numpy().astype(np.float64).T
    factor = scale * module.scale.numpy()[:, 0]
    result: np.ndarray = accumulator.astype(np.float32) * factor
    return result if module.bias is None else result + module.bias.numpy()


def _size(centred: np.ndarray, scale: np.ndarray, module: QuantLinear) -> np.ndarray:
    """The sum of all terms' magnitudes, which float rounding is relative to."""
    weight = np.abs(module.integers.wide().numpy().astype(np.float64))
    result: np.ndarray = (np.abs(centred) @ weight.T) * (scale * module.scale.numpy()[:, 0])
    return result if module.bias is None else result + np.abs(module.bias.numpy())


def _attention(merged: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Softmax attention over merged query, key and value [batch, length, 3 hidden]."""
    batch, length, width = merged.shape
    parts = merged.view(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    context = torch.nn.functional.scaled_dot_product_attention(
        parts[0], parts[1], parts[2], attn_mask=mask[:, None, None, :]
    )
    return context.transpose(1, 2).reshape(batch, length, width // 3)


def _embedded(model: PreTrainedModel, plan: EncoderPlan, arrays: dict[str, np.ndarray]) -> Tensor:
    """The embedding block of the model itself, before a projection."""
    module = model.get_submodule(plan.embedding.norm.rpartition(".")[0])
    names = [name for name in plan.arguments if name != "attention_mask"]
    result: Tensor = module(**{name: torch.from_numpy(arrays[name]) for name in names})
    return result
