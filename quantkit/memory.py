"""How much memory a process holds, how much it held at most, and giving freed memory back."""

import ctypes
import resource
import sys
from pathlib import Path

__all__ = ["resident_bytes", "return_freed_memory"]


def resident_bytes(*, peak: bool = False) -> int:
    """Bytes of memory that this process holds now, or its `peak` so far.

    Linux's `getrusage` would count the parent's memory too, from before the program was
    started; /proc counts this program's own. Elsewhere only the peak is known.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        wanted = "VmHWM:" if peak else "VmRSS:"
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def return_freed_memory() -> None:
    """Hand what tensors no longer use back to the system, where the C library can (glibc).

    Between pieces of a long computation: glibc keeps freed blocks of up to 32 MB for later, and
    blocks of other sizes then do not fit in. Quantizing BERT-base held a third more without.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
