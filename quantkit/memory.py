"""How much memory a process holds, and how much it held at most."""

import resource
import sys
from pathlib import Path

__all__ = ["resident_bytes"]


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
