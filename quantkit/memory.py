"""How much memory a process holds, how much it held at most, and giving freed memory back."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["keeping_freed_memory", "resident_bytes", "return_freed_memory"]

# The numbers of glibc's malloc.h. The first call of mallopt ends its own adjustment for good, so
# `USUAL` is what that comes to in the end (mallopt(3)): blocks from 32 MB on are mapped by
# themselves, and twice as much may lie free at the end of the heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
USUAL = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 65536}
KEEPING = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0}


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
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within: what a tensor no longer uses serves the next one, where the C library can (glibc).

    glibc maps blocks above 32 MB one by one and unmaps them when they are freed, so that each
    step of a training has the system clear the same gigabytes again, page by page. At the end
    everything that is free is given back.
    """
    option = _glibc("mallopt")
    if option is None:
        yield
        return
    for which, value in KEEPING.items():
        option(which, value)
    try:
        yield
    finally:
        for which, value in USUAL.items():
            option(which, value)
        return_freed_memory()


def _glibc(name: str) -> Any:  # noqa: ANN401
    """A function of glibc; None on other systems, of which musl has neither."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
