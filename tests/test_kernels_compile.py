"""Every kernel compiles for compute capability 9.0, without a GPU; needs Triton (see Makefile).

That a product becomes the tensor cores' own int8 instruction is read off the PTX.
"""

import importlib
import os
import re
from typing import Any

import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

HALF_FLOATS, FLOATS, CODES, NIBBLES, IDS = "*fp16", "*fp32", "*i8", "*u8", "*i64"
TYPES = {  # of arguments, by their names in the kernels
    "correction": "*i32",
    "eps": "fp32",
    "factor": "fp32",
    "frequent": "*i32",
    "frequent_codes": CODES,
    "ids": IDS,
    "merged": HALF_FLOATS,
    "multipliers": CODES,
    "normed": HALF_FLOATS,
    "offset": "*i32",
    "residual": HALF_FLOATS,
    "result": HALF_FLOATS,
    "starts": "*i32",
    "x": HALF_FLOATS,
}
SIZES = ("tokens", "outputs", "inputs", "stride", "group", "groups", "hidden", "width")
ENDS = {"LOW": -128.0, "HIGH": 127.0}
PRODUCT = {
    "HALF": 0,
    "GROUPED": False,
    "INTEGER": True,
    "PER_TOKEN": False,
    "FUNCTION": "none",
    "KIND": "float",
    "MULTIPLIED": False,
    "BLOCK_N": 128,
    "BLOCK_M": 128,
    "BLOCK_K": 128,
    "WHOLE": True,
    **ENDS,
}


def ptx(module: str, kernel: str, types: dict[str, str], constants: dict[str, Any]) -> str:
    """What the kernel is compiled to for sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"quantkit.kernels.{module}"), kernel)
    known = {**dict.fromkeys(SIZES, "i32"), **TYPES, **types}
    signature = {
        name: "constexpr" if name in constants else known.get(name, FLOATS)
        for name in function.arg_names
    }
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, kind in enumerate(signature.values())
        if kind.startswith("*") or kind == "i32"
    }
    source = ASTSource(function, signature, constants, aligned)
    options = {"num_warps": 8 if kernel == "_product" else 4}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"]
    text: str = made.asm["ptx"]
    return text


@pytest.mark.parametrize(
    ("types", "constants", "instruction"),
    [
        ({"x": CODES, "codes": CODES}, {}, "s32.s8.s8"),
        ({"x": CODES, "codes": CODES}, {"PER_TOKEN": True}, "s32.s8.s8"),
        (
            {"x": CODES, "codes": CODES, "result": CODES},
            {"FUNCTION": "gelu", "KIND": "static", "MULTIPLIED": True},
            "s32.s8.s8",
        ),
        ({"x": CODES, "codes": NIBBLES}, {"HALF": 64, "GROUPED": True}, "s32.s8.s8"),
        ({"x": CODES, "codes": NIBBLES}, {"HALF": 32, "BLOCK_K": 64}, "s32.s8.s8"),
        ({"codes": NIBBLES}, {"HALF": 64, "GROUPED": True, "INTEGER": False}, "f32.f16.f16"),
        ({"codes": CODES}, {"INTEGER": False}, "f32.f16.f16"),
    ],
)
def test_products_use_the_tensor_cores(
    types: dict[str, str], constants: dict[str, Any], instruction: str
) -> None:
    found = ptx("product", "_product", types, {**PRODUCT, **constants})
    shapes = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.([\w.]+)", found)
    assert set(shapes) == {instruction}
    assert "cp.async" in found  # tiles are fetched while others are multiplied


@pytest.mark.parametrize("codes", [True, False])
def test_attention(codes: bool) -> None:
    constants = {"CODES": codes, "MULTIPLIED": codes, "WIDTH": 64, "BLOCK_M": 64, "BLOCK_N": 64}
    types = {"result": CODES} if codes else {}
    assert "wgmma" in ptx("attention", "_attention", types, {**constants, **ENDS})


@pytest.mark.parametrize("kind", ["float", "static", "token", "float8"])
def test_kernels_of_rows(kind: str) -> None:
    types = {"codes": "*fp8e4nv" if kind == "float8" else CODES}
    common = {"KIND": kind, "MULTIPLIED": True, "BLOCK": 1024, **ENDS}
    found = ptx("layer_norm", "_layer_norm", types, {**common, "RESIDUAL": True})
    assert "wgmma" not in found
    # IEEE's division, not the approximate one.
    assert ("div.rn.f32" in found) == (kind != "float")
    for function in ("none", "gelu", "gelu_tanh", "relu"):
        assert ptx("inputs", "_apply", types, {**common, "FUNCTION": function, "KEEP": True})


@pytest.mark.parametrize("bits", [4, 8, 0])
def test_rows_of_tables(bits: int) -> None:
    types = {"codes": {4: NIBBLES, 8: CODES, 0: HALF_FLOATS}[bits]}
    constants = {"BITS": bits, "BEFORE": True, "GROUPED": True, "FREQUENT": True, "BLOCK": 1024}
    assert ptx("embedding", "_add_rows", types, constants)


@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_fake_quantization(kernel: str) -> None:
    constants = {"PER_ROW": True, "GROUPED": True, "BLOCK": 1024, "LOW": -7.0, "HIGH": 7.0}
    constants |= {"SMOOTHED": True}
    types = dict.fromkeys(("x", "multipliers", "result", "columns"), FLOATS) | {"columns": "i32"}
    assert "div.rn.f32" in ptx("fake_quant", kernel, types, constants)
