"""ONNX Runtime and torch on a machine without a GPU: they place and start, nothing runs.

`runtime.c` stands in for the CUDA runtime, `driver.c` for its driver; the libraries above them
(cuBLAS, ...) get functions that do nothing and succeed. ONNX Runtime's CUDA provider, torch and
Triton are the real ones, and so are their decisions. `python -m tests.dry_cuda` runs a script.
"""

import ctypes
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["PROVIDER", "Started", "install", "libraries", "package", "started"]

HERE = Path(__file__).parent
PROVIDER = "capi/libonnxruntime_providers_cuda.so"
STOOD_IN_FOR = ("libcudart", "libcublas", "libcublasLt", "libcudnn", "libcurand", "libcuda")
RUNTIME, DRIVER = "libcudart", "libcuda"


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


def package(name: str) -> Path:
    """Where an installed package lies.

    Raises:
        ModuleNotFoundError: it does not.
    """
    spec = find_spec(name)
    places = [] if spec is None else [*(spec.submodule_search_locations or [])]
    if not places:
        raise ModuleNotFoundError(f"{name} is not installed")
    return Path(places[0])


def install(folder: Path) -> ctypes.CDLL:
    """Build what onnxruntime-gpu wants into `folder`, and load it before it looks for it itself.

    Returns:
        The runtime.
    """
    built = libraries(folder, [package("onnxruntime") / PROVIDER])
    loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in built]
    loaded[0].dry_stop.restype = ctypes.c_char_p
    return loaded[0]


def libraries(folder: Path, binaries: Sequence[Path]) -> list[Path]:
    """Build what `binaries` want, with all functions that they call; the runtime comes first."""
    wanted: dict[str, set[str]] = {}
    for path in binaries:
        needed = re.findall(r"NEEDED.*\[(libcu[^]]*)\]", _output("readelf", "-d", str(path)))
        for name in needed:
            if name.partition(".")[0] in STOOD_IN_FOR:
                wanted.setdefault(name, set())
    wanted.setdefault("libcuda.so.1", set()).update(_driver_functions())
    for path in binaries:
        symbols = _output("nm", "--dynamic", "--undefined-only", str(path))
        for symbol, library in re.findall(
            r" ((?:__cuda|cu)\w+)(?:@(\S+))?$", symbols, re.MULTILINE
        ):
            name = library or ("libcuda.so.1" if re.match(r"cu[A-Z](?!ile)", symbol) else "")
            if name in wanted:
                wanted[name].add(symbol)
    runtime = next(name for name in wanted if name.startswith(RUNTIME))
    order = [runtime, *(name for name in wanted if name != runtime)]
    return [
        _build(folder, name, wanted[name], "" if name == runtime else runtime) for name in order
    ]


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


def _driver_functions() -> list[str]:
    """All that Triton may call, by its header; nothing without Triton."""
    try:
        header = package("triton") / "backends" / "nvidia" / "include" / "cuda.h"
    except ModuleNotFoundError:
        return []
    text = header.read_text("utf-8", errors="replace")
    return re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)\s*\(", text) + re.findall(
        r"#define\s+cu\w+\s+(cu[A-Z]\w+_v\d)\s", text
    )


def _build(folder: Path, name: str, functions: set[str], above: str) -> Path:
    """Compile a library that has all `functions`; `above` it is the runtime's, "" of itself."""
    source = "void dry_note(const char *, ...);\n"
    if not above or name.startswith(f"{DRIVER}."):
        source = (HERE / ("driver.c" if above else "runtime.c")).read_text("utf-8")
    given = set(re.findall(r"^HERE[^(]*?(\w+)\(", source, re.MULTILINE))
    code = [source, *(_empty(each) for each in sorted(functions - given))]
    text, versions, path = folder / f"{name}.c", folder / f"{name}.map", folder / name
    text.write_text("\n".join(code), "utf-8")
    versions.write_text(f"{name} {{ global: *; }};\n", "utf-8")
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(path), str(text), f"-Wl,-soname,{name}"]
    command += [f"-I{each}" for each in _headers()]
    if functions and not name.startswith(f"{DRIVER}."):  # whose functions have no versions
        command.append(f"-Wl,--version-script={versions}")
    command += [f"-L{folder}", f"-l:{above}"] if above else ["-ldl"]
    subprocess.run(command, check=True)
    return path


def _empty(function: str) -> str:
    """A function that succeeds; where it should make something, it makes some memory."""
    if re.search(r"Get(Status|Error)(Name|String)", function):
        return f'const char *{function}(void) {{ return ""; }}'
    if function == "cublasLtMatmulAlgoGetHeuristic":  # one way to compute, at least
        rest = ", ".join(f"void *a{at}" for at in range(9))
        return f"int {function}({rest}, int *found) {{ *found = 1; return 0; }}"
    if function == "cudnnGetVersion":
        return f"unsigned long {function}(void) {{ return 91900; }}"
    if "Create" in function:
        body = "{ static char something[4096]; *made = something; return 0; }"
        return f"int {function}(void **made) {body}"
    return f'int {function}(void) {{ dry_note("{function}"); return 0; }}'


def _headers() -> list[Path]:
    """Where NVIDIA's Python packages have the runtime's headers, `nvidia-cuda-crt` among them."""
    return sorted(package("nvidia").glob("*/include"))


def _output(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, input=stdin)
    return done.stdout
