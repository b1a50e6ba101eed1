"""Peak memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def reset_peak_memory() -> float | None:
    """Start a new measurement, where the system can (a worker process serves many runs); resident MB at the start."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed must not count as memory that this one found
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    return peak_memory_mb()


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process since the reset (Linux), else since it started."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0**2 if sys.platform == "darwin" else 1024.0)
