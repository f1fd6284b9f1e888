"""The torch engine and training on a GPU, as far as a machine without one shows; needs Triton.

Every kernel that a model starts is compiled for compute capability 9.0 with the very arguments
that it would get; nothing on the way asks the device for a number, or joins two devices. Numbers
are test_engine.py's and test_kernels.py's.
"""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.engine.batch import Packed, Shape, rounded
from quantkit.engine.checkpoint import read_checkpoint
from quantkit.engine.model import build
from quantkit.integers import Integers
from quantkit.kernels import FLOATS, Matrix, Operand, Reads, attention, product
from quantkit.kernels.tuning import HOPPER, SINGLE
from quantkit.ptq import quantize
from quantkit.qat import Lsq, inputs, prepare, products, together
from quantkit.recipe import Recipe, with_bits, with_changes
from tests.dry_triton import MOST_SHARED, Launch, record, spilled

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from cuda_measure import full_arrays
from cuda_models import Sizes, make_folders, random_model

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

META = torch.device("meta")
LAYERS = 2
LENGTHS = (37, 12, 50, 128, 9, 7, 64, 33)
# Of a model with BERT-base's widths: what the layers and the pooler start.
INTEGERS = {"_add_rows": 3, "_layer_norm": 2 * LAYERS + 1, "_attention": LAYERS}
PRODUCTS = {"_product": 4 * LAYERS + 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed and float checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("models")
    make_folders(Sizes(layers=LAYERS), folder)
    return folder


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("w8a8", "packed", INTEGERS | PRODUCTS | {"_apply": 1}),  # the pooler's input
        ("w4a8", "packed", INTEGERS | PRODUCTS | {"_apply": 1}),
        ("w4a16", "packed", INTEGERS | PRODUCTS),
        ("float", "float16", INTEGERS | {"_apply": LAYERS}),  # GELU
        ("float", "bfloat16", INTEGERS | {"_apply": LAYERS}),
        ("float", "float32", INTEGERS | {"_apply": LAYERS}),
        ("float", "float8", INTEGERS | {"_apply": 2 * LAYERS}),  # and attention's context
    ],
)
@torch.no_grad()
def test_a_model_starts_its_kernels_without_a_look_from_the_host(
    name: str,
    precision: Any,  # noqa: ANN401
    expected: dict[str, int],
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = read_checkpoint(folders / name, torch.device("cpu"))
    tensors = {key: value.to(META) for key, value in source.tensors.items()}
    encoder = build(replace(source, tensors=tensors), precision, torch.float16)
    launches = record(monkeypatch)
    shape = rounded(Shape(sum(LENGTHS), len(LENGTHS), max(LENGTHS)))
    batch = Packed(torch.empty(shape.values, dtype=torch.int32, device=META), shape)
    answers = encoder(batch)
    assert (answers.shape, answers.dtype) == ((8, 3), torch.float32)
    assert answers.is_meta
    assert Counter(launch.name for launch in launches) == expected
    for launch in unique(launches):
        assert launch.shared <= MOST_SHARED, launch.name
        assert spilled(launch) <= 16, launch.name


def unique(launches: list[Launch]) -> list[Launch]:
    return list({launch.compiled.hash: launch for launch in launches}.values())


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_all_tiles_of_integer_products_fit(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the heaviest end of all: bias, GELU, and codes for the next product."""
    launches = record(monkeypatch, HOPPER)
    scale, zero = (torch.empty(1, device=META, dtype=kind) for kind in (torch.float32, torch.uint8))
    reads = Reads.static(scale, zero, None, 8)
    codes = reads.empty(512, 768, META)
    product(codes, operand(bits, reads), torch.float16, "gelu", reads)
    assert len(launches) == len(HOPPER)
    for launch in unique(launches):
        assert launch.shared <= MOST_SHARED
        assert spilled(launch) <= 128  # of the largest, in the middle of GELU


@torch.no_grad()
def test_products_of_float32_stay_in_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = record(monkeypatch, SINGLE)
    x = torch.empty((32, 768), device=META)
    product(x, operand(4, FLOATS), torch.float32)
    assert [spilled(launch) for launch in launches] == [0] * len(SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [32, 64])
@torch.no_grad()
def test_attention_stays_in_registers(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = record(monkeypatch)
    merged = torch.empty((100, 3 * 12 * width), dtype=dtype, device=META)
    starts = torch.empty(5, dtype=torch.int32, device=META)
    attention(merged, starts, 128, 12, FLOATS)
    assert [spilled(launch) <= 16 for launch in launches] == [True]


def operand(bits: int, reads: Reads) -> Operand:
    """A weight [3072, 768] with groups of 64."""
    stored = (3072, 768) if bits == 8 else (3072, 384)
    kind = torch.int8 if bits == 8 else torch.uint8
    codes = torch.empty(stored, dtype=kind, device=META)
    scale = torch.empty((3072, 1), device=META)
    groups = torch.empty((3072, 12), dtype=torch.int8, device=META) if bits == 4 else None
    return Operand.of(Matrix.of(Integers(codes, scale, bits, groups)), None, reads)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_step_of_qat_starts_two_kernels_for_each_input_and_two_for_all_weights(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward; of an input its smoothing is inside, of weights all of one width."""
    model = random_model(Sizes(layers=LAYERS, vocab=500))
    recipe = with_bits(Recipe(name="training", task="none", model="none"), bits)
    recipe = with_changes(recipe, {"rounding": {"name": "nearest"}})
    tokens = {name: torch.from_numpy(a) for name, a in full_arrays(4, 16, 500).items()}
    trained: Any = prepare(model, quantize(model, [tokens], recipe=recipe), Lsq())
    trained.to(META)
    assert any(name.endswith("multiplier") for name, _ in trained.named_buffers())
    launches = record(monkeypatch)
    for module in (inputs, products, together):  # autocast knows nothing of this device
        monkeypatch.setattr(module, "product_type", lambda _: torch.float32)
    # transformers asks whether a mask hides nothing, so there is none here.
    ids = torch.empty((4, 32), dtype=torch.int64, device=META)
    trained(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits.sum().backward()
    widths, read = 2, 4 * LAYERS + 1
    # Words and positions; the most frequent words have a grid of their own, types none.
    tables = 3 if bits == 4 else 2
    grids = widths + read + tables
    assert Counter(launch.name for launch in launches) == {"_forward": grids, "_backward": grids}
    assert all(spilled(launch) == 0 for launch in unique(launches))
    assert all(value.grad is not None for value in trained.parameters() if value.requires_grad)
