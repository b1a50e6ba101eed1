"""numpy's linear algebra on one thread, for the K x K problems of a method."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

_guard = threading.Lock()
_guests = 0
_limits: Any = None


@functools.cache
def _blas(with_scipy: bool) -> Any:
    # SciPy brings a library of its own, which is looked for once it is there.
    import threadpoolctl  # not needed before a step, and numpy is loaded by now

    return threadpoolctl.ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """Inside, numpy's linear algebra keeps to the calling thread, for the whole process.

    From a few dozen rows on it would wake threads of its own, beside torch's, which wait without sleeping on the very
    same cores: a K x K problem then takes several times as long.
    """
    global _guests, _limits
    with _guard:
        _guests += 1
        if _guests == 1:
            _limits = _blas("scipy.linalg" in sys.modules).limit(limits=1)
    try:
        yield
    finally:
        with _guard:
            _guests -= 1
            if _guests == 0:
                _limits.restore_original_limits()
