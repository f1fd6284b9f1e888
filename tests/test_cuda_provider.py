"""Files for CUDA in ONNX Runtime's own CUDA provider, on a machine without a GPU.

`make test-cuda-provider` runs them with onnxruntime-gpu and a CUDA runtime that starts kernels
without running them (tests/dry_cuda): what is placed where, which kernels start, what is copied
and captured. Numbers are tests/test_cuda_target.py's.
"""

import shutil
from collections.abc import Callable
from ctypes import CDLL
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import quantkit
from quantkit.errors import CheckpointError
from quantkit.exporter import export
from quantkit.exporter.bert import build
from quantkit.exporter.cuda_table import host_operators
from quantkit.onnx_file import Target
from tests.dry_cuda import Started, install, started
from tests.models import FAMILIES, HEADS, quantized_for, small_model

LAYERS = 2


pytestmark = pytest.mark.skipif(
    not any(metadata.distributions(name="onnxruntime-gpu")) or shutil.which("gcc") is None,
    reason="needs onnxruntime-gpu and gcc: make test-cuda-provider",
)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    return install(tmp_path_factory.mktemp("cuda"))


def model_of(family: str, head: str = "ForSequenceClassification") -> PreTrainedModel:
    """Of widths that groups of 16 divide."""
    settings: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    if family == "DistilBert":
        settings = {"dim": 64, "hidden_dim": 128}
    if family in {"Albert", "Electra"}:
        settings["embedding_size"] = 32
    return small_model(family, head, layers=LAYERS, **settings)


def opened(proto: onnx.ModelProto, **settings: str) -> Any:  # noqa: ANN401
    options = quantkit.runtime.session_options(1, "cuda")
    return quantkit.runtime.import_onnxruntime().InferenceSession(
        proto.SerializeToString(), options, providers=[("CUDAExecutionProvider", settings)]
    )


def on_the_host(session: Any) -> list[str]:  # noqa: ANN401
    """Every operator there, those of sizes too."""
    return [
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    ]


def step_of(session: Any, batch: int, length: int) -> Callable[[], None]:  # noqa: ANN401
    """One computation of full texts, on tensors that lie on the device; run twice already."""
    value = quantkit.runtime.import_onnxruntime().OrtValue
    binding = session.io_binding()
    for given in session.get_inputs():
        ones = np.ones((batch, length), np.int64)
        binding.bind_ortvalue_input(given.name, value.ortvalue_from_numpy(ones, "cuda", 0))
    output = session.get_outputs()[0]
    known = {"batch": batch, "length": length}
    shape = [known.get(size, size) for size in output.shape]
    place = value.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
    binding.bind_ortvalue_output(output.name, place)

    def step() -> None:
        session.run_with_iobinding(binding)

    step()
    step()
    return step


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_every_file_runs_on_the_gpu_and_becomes_a_graph(
    family: str, head: str, runtime: CDLL
) -> None:
    model = model_of(family, head)
    for bits in (0, 8, 4):
        made = quantized_for(model, bits, "cuda") if bits else model
        assert on_the_host(opened(build(made, {}, "cuda-unpadded"))) == []
        proto = build(made, {}, "cuda")
        session = opened(proto)
        assert on_the_host(session) == []
        plain = started(runtime, step_of(session, 3, 7))
        assert plain.launches > 20
        assert (plain.copied_to, plain.copied_back) == (0, 0)
        # Asked for graphs, ONNX Runtime refuses a file with parts or copies on the host.
        graph = started(runtime, step_of(opened(proto, enable_cuda_graph="1"), 3, 7))
        assert (graph.replays, graph.launches) == (1, 0)


@pytest.fixture(scope="module")
def wide(runtime: CDLL) -> dict[int, Started]:
    """What models with BERT-base's heads start for 4 texts of 32 tokens, by their bits."""
    model = small_model(
        "Bert", layers=LAYERS, hidden_size=128, num_attention_heads=2, intermediate_size=256
    )
    files = {bits: quantized_for(model, bits, "cuda") if bits else model for bits in (0, 8, 4)}
    return {
        bits: started(runtime, step_of(opened(build(made, {}, "cuda")), 4, 32))
        for bits, made in files.items()
    }


def test_attention_is_one_kernel_that_passes_by_padding(wide: dict[int, Started]) -> None:
    for found in wide.values():
        assert found.kernels_with("flash_fwd") == LAYERS
        assert found.kernels_with("Softmax") == 0


def test_norms_take_their_residual_and_gelu_its_bias(wide: dict[int, Started]) -> None:
    float_file = wide[0]
    assert float_file.kernels_with("SkipLayerNorm") == 2 * LAYERS + 1
    assert float_file.kernels_with("BiasGelu") == LAYERS
    assert float_file.products == 4 * LAYERS + 2
    # Of a layer: four products, a bias, parting query, key and value, where texts end, attention,
    # a GELU and two norms. The rest are the embeddings, the head and the picking of a token.
    assert float_file.launches <= 11 * LAYERS + 16


def test_without_padding_it_is_one_kernel_over_all_texts(runtime: CDLL) -> None:
    model = small_model(
        "Bert", layers=LAYERS, hidden_size=128, num_attention_heads=2, intermediate_size=256
    )
    found = started(runtime, step_of(opened(build(model, {}, "cuda-unpadded")), 4, 32))
    assert found.kernels_with("flash_fwd") == LAYERS
    assert found.kernels_with("removePadding") == 1
    assert found.kernels_with("Transpose") == found.kernels_with("BroadcastBias") == 0
    assert found.copied_back == 8  # how many tokens there are, and the most of a text
    assert found.launches <= 10 * LAYERS + 19


def test_integer_products_are_products_of_integers(wide: dict[int, Started]) -> None:
    assert wide[8].kernels_with("QuantizeLinear") == 4 * LAYERS + 1
    assert wide[8].products == 4 * LAYERS + 2
    assert wide[4].kernels_with("Dequantize4Bits") + wide[4].kernels_with("MatMulFloat") >= 4


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_session_answers(
    bits: int, graphs: bool, tokenizer: PreTrainedTokenizerBase, runtime: CDLL, tmp_path: Path
) -> None:
    model = model_of("Bert")
    made = quantized_for(model, bits, "cuda") if bits else model
    export(made, tokenizer, tmp_path, target="cuda")
    session = quantkit.load(tmp_path, device="cuda", engine="onnxruntime", graphs=graphs)
    texts = ["makanan enak sekali", "buruk", "biasa saja"] * 3
    assert session.logits(texts).shape == (9, 3)
    if graphs:
        found = started(runtime, lambda: session.logits(texts))
        assert (found.replays, found.launches) == (2, 0)  # batches of 8 and of 1


def test_the_fastest_of_what_can_be_opened_is_taken(
    tokenizer: PreTrainedTokenizerBase, runtime: CDLL, tmp_path: Path
) -> None:
    export(model_of("Bert"), tokenizer, tmp_path, target="cuda")
    session = quantkit.load(tmp_path, device="cuda")
    assert session.logits(["makanan enak"]).shape == (1, 3)
    tried = {note.partition(":")[0].removesuffix(" (chosen)") for note in session.notes}
    # torch sees no GPU.
    assert {"onnxruntime", "onnxruntime with graphs"} <= tried
    assert sum("(chosen)" in note for note in session.notes) == 1
    assert any(
        note.startswith("torch was not tried: torch finds no CUDA") for note in session.notes
    )


def test_a_session_without_padding_answers_but_makes_no_graphs(
    tokenizer: PreTrainedTokenizerBase, runtime: CDLL, tmp_path: Path
) -> None:
    export(model_of("Bert"), tokenizer, tmp_path, target="cuda-unpadded")
    session = quantkit.load(tmp_path, device="cuda", engine="onnxruntime")
    assert session.logits(["makanan enak sekali", "buruk"]).shape == (2, 3)
    with pytest.raises(CheckpointError, match=r"CUDA graphs forbid.*--target cuda"):
        quantkit.load(tmp_path, device="cuda", engine="onnxruntime", graphs=True)


def test_files_for_other_places_are_refused_where_their_operators_have_no_kernel(
    tokenizer: PreTrainedTokenizerBase, runtime: CDLL, tmp_path: Path
) -> None:
    model = model_of("Bert")
    narrow = quantized_for(model, 4, "portable")
    refused: dict[Target, str] = {"cpu": "MatMulIntegerToFloat", "portable": "BitShift"}
    for target, operator in refused.items():
        path = export(narrow, tokenizer, tmp_path / target, target=target).path
        with pytest.raises(CheckpointError, match=rf"on the host.*{operator}.*--target cuda"):
            quantkit.load(path, device="cuda", engine="onnxruntime")
    # The portable target's 8-bit file has kernels for all of it.
    export(quantized_for(model, 8, "portable"), tokenizer, tmp_path / "eight", target="portable")
    session = quantkit.load(tmp_path / "eight", device="cuda", engine="onnxruntime")
    assert session.logits(["makanan enak"]).shape == (1, 3)


@pytest.mark.parametrize("target", ["cpu", "portable", "cuda", "cuda-unpadded"])
@pytest.mark.parametrize("bits", [0, 8, 4])
def test_the_table_of_operators_says_what_the_provider_does(
    bits: int, target: Target, runtime: CDLL
) -> None:
    model = model_of("Bert")
    proto = build(quantized_for(model, bits, target) if bits else model, {}, target)
    assert dict(host_operators(proto)) == quantkit.providers.host_operators(opened(proto))
