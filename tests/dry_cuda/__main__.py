"""Run a Python script, and what it starts, with torch's CUDA build and no GPU.

    python -m tests.dry_cuda benchmarks/cuda_speed.py --toy --work FOLDER --results FOLDER

Kernels are compiled, started and left undone: it shows whether a script comes to its end on a GPU,
and no time or answer that it prints means anything.
"""

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.dry_cuda import PROVIDER, libraries, package

# cuDNN's attention is planned by cuDNN itself, which is not there.
BEFORE = """
import importlib.util
if importlib.util.find_spec("torch"):
    import torch
    torch.backends.cuda.enable_cudnn_sdp(False)
"""


def main() -> None:
    """Build the libraries for what is installed here, then become the script."""
    folder = Path(tempfile.mkdtemp(prefix="dry-cuda-"))
    torch = package("torch") / "lib"
    binaries = [path for path in torch.glob("*.so") if path.stat().st_size]
    binaries += package("nvidia").glob("*/lib/*.so*")
    with suppress(ModuleNotFoundError):  # then torch is alone
        binaries.append(package("onnxruntime") / PROVIDER)
    built = libraries(folder, [path for path in binaries if path.is_file()])
    (folder / "libcuda.so").symlink_to(folder / "libcuda.so.1")
    (folder / "sitecustomize.py").write_text(BEFORE, "utf-8")
    paths = [
        str(folder),
        str(Path(__file__).parent.parent.parent),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(str, built)),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_LIBCUDA_PATH": str(folder),
        "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0",
    }
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
