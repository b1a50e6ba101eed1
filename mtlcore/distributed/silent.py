"""Which processes are gone, when an exchange has failed.

A backend says that a connection broke, not whose fault it was: one that dies takes its neighbours' connections along.
But every process that is left comes here, and the group's store, through which the processes once found each other,
still works (unless it lived in the process that died). So each leaves a sign there, and those without one are gone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from mtlcore.gradients import torch_internals

_PATIENCE = 5.0
"""Seconds in which the others must see the failure, too. They wait for the same exchange with the same timeout."""


def named(group: dist.ProcessGroup) -> str:
    """ ", and has no sign of process 3": for a message. Empty where all are there, or nobody can be asked."""
    missing: list[int] = []
    end = time.monotonic() + _PATIENCE
    # The store's process may be gone, or go first; the group may have been destroyed.
    with contextlib.suppress(RuntimeError, ValueError, LookupError):
        store = torch_internals.group_store(group)
        if store is None:
            return ""
        keys = [f"mtlcore/left/{r}" for r in range(dist.get_world_size(group))]
        store.set(keys[dist.get_rank(group)], "here")
        while missing := [keys.index(key) for key in _absent(store, keys)]:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    if not missing or time.monotonic() < end - _PATIENCE / 2:
        return ""
    return f", and has no sign of process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"


def _absent(store: Any, keys: Sequence[str]) -> list[str]:
    """By halves: few questions where few are absent."""
    if store.check(list(keys)):
        return []
    if len(keys) == 1:
        return list(keys)
    half = len(keys) // 2
    return _absent(store, keys[:half]) + _absent(store, keys[half:])
