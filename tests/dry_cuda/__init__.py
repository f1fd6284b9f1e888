"""ONNX Runtime's CUDA provider on a machine without a GPU: it places and starts, nothing runs.

`runtime.c` stands in for the CUDA runtime; the libraries above it (cuBLAS, ...) get functions that
do nothing and succeed. The provider is the real one, of onnxruntime-gpu, and so are its decisions.
"""

import ctypes
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Started", "install", "started"]

SOURCE = Path(__file__).with_name("runtime.c")
PROVIDER = "libonnxruntime_providers_cuda.so"


@dataclass(frozen=True)
class Started:
    """What a computation asked of the GPU.

    kernels: by name, those of ONNX Runtime; products: calls of cuBLAS; copies: bytes, to the GPU
    and back; replays: of captured graphs.
    """

    kernels: Counter[str]
    products: int
    copied_to: int
    copied_back: int
    replays: int

    def kernels_with(self, part: str) -> int:
        """How many kernels have `part` in their name."""
        return sum(count for name, count in self.kernels.items() if part in name)

    @property
    def launches(self) -> int:
        """Kernels and products together."""
        return sum(self.kernels.values()) + self.products


def install(folder: Path) -> ctypes.CDLL:
    """Build the libraries into `folder` and load them before onnxruntime looks for its own.

    Returns:
        The one of the runtime.
    """
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("onnxruntime-gpu is not installed")
    provider = Path(spec.origin).parent / "capi" / PROVIDER
    named = re.findall(r"NEEDED.*\[(libcu[^]]*)\]", _output("readelf", "-d", str(provider)))
    wanted: dict[str, list[str]] = {name: [] for name in named}
    symbols = _output("nm", "--dynamic", "--undefined-only", str(provider))
    for symbol, library in re.findall(r" ((?:__cuda|cu)\w+)(?:@(\S+))?$", symbols, re.MULTILINE):
        wanted[library or "libcuda.so.1"].append(symbol)
    runtime = next(name for name in wanted if name.startswith("libcudart"))
    loaded = _build(folder, runtime, wanted.pop(runtime), SOURCE.read_text("utf-8"), "")
    for name, functions in wanted.items():
        _build(folder, name, functions, "void dry_note(const char *, ...);\n", runtime)
    loaded.dry_stop.restype = ctypes.c_char_p
    return loaded


def started(runtime: ctypes.CDLL, step: Callable[[], object]) -> Started:
    """What `step` asks of the GPU; `runtime` is what `install` has given."""
    runtime.dry_start()
    try:
        step()
    finally:
        lines = runtime.dry_stop().decode().splitlines()
    kernels = [line.removeprefix("kernel ") for line in lines if line.startswith("kernel ")]
    names = _output("c++filt", stdin="\n".join(kernels)).splitlines()
    return Started(
        Counter(names),
        sum(bool(re.match(r"cublas\w*(Gemm|gemm|LtMatmul$)", line)) for line in lines),
        _bytes(lines, "to"),
        _bytes(lines, "back"),
        lines.count("replay"),
    )


def _bytes(lines: list[str], direction: str) -> int:
    start = f"copy {direction} "
    return sum(int(line.removeprefix(start)) for line in lines if line.startswith(start))


def _build(folder: Path, name: str, functions: list[str], source: str, above: str) -> ctypes.CDLL:
    """Compile a library that has all `functions`, and load it; `above` it is the runtime's."""
    given = set(re.findall(r"^HERE[^(]*?(\w+)\(", source, re.MULTILINE))
    code = [source, *(_empty(each) for each in functions if each not in given)]
    text, versions = folder / f"{name}.c", folder / f"{name}.map"
    text.write_text("\n".join(code), "utf-8")
    versions.write_text(f"{name} {{ global: *; }};\n", "utf-8")
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(folder / name), str(text)]
    command += [f"-Wl,-soname,{name}", *(f"-I{each}" for each in _headers())]
    if functions and name != "libcuda.so.1":  # whose functions have no versions
        command.append(f"-Wl,--version-script={versions}")
    if above:
        command += [f"-L{folder}", f"-l:{above}"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def _empty(function: str) -> str:
    """A function that succeeds; where it should make something, it makes some memory."""
    if re.search(r"Get(Status|Error)(Name|String)", function):
        return f'const char *{function}(void) {{ return ""; }}'
    if function == "cublasLtMatmulAlgoGetHeuristic":  # one way to compute, at least
        rest = ", ".join(f"void *a{at}" for at in range(9))
        return f"int {function}({rest}, int *found) {{ *found = 1; return 0; }}"
    if "Create" in function:
        body = "{ static char something[4096]; *made = something; return 0; }"
        return f"int {function}(void **made) {body}"
    return f'int {function}(void) {{ dry_note("{function}"); return 0; }}'


def _headers() -> list[Path]:
    """Where NVIDIA's Python packages have the headers."""
    spec = find_spec("nvidia")
    places = [Path(each) for each in (spec.submodule_search_locations or [])] if spec else []
    return [found for place in places for found in place.glob("*/include")]


def _output(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, input=stdin)
    return done.stdout
