"""Tasks that come, go and change their order: what happens to a method's state.

Which numbers of a state belong to which task is read off ``init``: an axis counts tasks if it has K entries in
``init(K)`` and K + 1 in ``init(K + 1)``. Three cases need a rule of their own:

* An entry that ``init`` leaves empty, of shape (0,), because its size is not known before the first step, has a row per
  task if it has two axes or more and the first is K long by now. (A vector of the trunk's size belongs to no task.)
* A method with one option per task (preferences, say) has an ``init`` for its own K only. There an axis of K entries
  counts tasks, if the entry has no other of that length.
* An entry that ``init`` does not have, with an axis of K entries, cannot be judged, and is refused.

A task that joins starts with what ``init`` gives (zeros in what ``init`` leaves empty); the numbers of the others stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.asking import aggregator as asking
from mtlcore.contracts import Aggregator, State
from mtlcore.errors import MtlError, StateError

Positions = Sequence[int | None]
"""For each task of the new roster its place in the old one; None for one that joins."""


def has_task_state(method: Aggregator) -> bool:
    """Whether ``init`` gives anything that counts tasks or waits for its size; True with an option per task."""
    try:
        two, three = asking.start(method, 2), asking.start(method, 3)
    except MtlError:  # an option for each task
        return True
    return any(t.numel() == 0 or t.shape != three[key].shape for key, t in two.items())


def moved(method: Aggregator, state: State, positions: Positions, old: int) -> State:
    """The state for another roster.

    Args:
        method: whose state it is.
        state: for ``old`` tasks; not written to.
        positions: of the new roster's tasks.
        old: how many tasks the state is for.

    Raises:
        StateError: it cannot be told which numbers of an entry belong to which task; names it.
        ConfigurationError: the method refuses so many tasks (it has an option for each, say).
    """
    if not state:
        return dict(state)
    fresh = asking.start(method, len(positions))
    before, after = asking.start(method, old), _one_more(method, old)
    out = {}
    for key, value in state.items():
        axes = _axes(key, value, before, after, old)
        out[key] = _moved(value, fresh.get(key), axes, positions) if axes else value.clone()
    return out


def _one_more(method: Aggregator, old: int) -> State | None:
    try:
        return asking.start(method, old + 1)
    except MtlError:
        return None


def _axes(key: str, value: Tensor, before: State, after: State | None, k: int) -> list[int]:
    """Those that count tasks."""
    likely = [a for a, n in enumerate(value.shape) if n == k]
    start = before.get(key)
    if start is None:
        if likely:
            raise _unknown(key, value, k, "init does not give that entry")
        return []
    if start.numel() == 0 and start.ndim != value.ndim:
        return [0] if value.ndim > 1 and value.shape[0] == k else []
    if after is not None and key in after and after[key].ndim == start.ndim:
        sizes = enumerate(zip(start.shape, after[key].shape))
        return [a for a, (n, more) in sizes if (n, more) == (k, k + 1) and value.shape[a] == k]
    if len(likely) > 1:
        raise _unknown(key, value, k, f"the method's options are for {k} tasks only, and several axes are as long")
    return likely


def _unknown(key: str, value: Tensor, k: int, why: str) -> StateError:
    return StateError(
        f"it cannot be told which numbers of the state {key!r} (shape {tuple(value.shape)}) belong to which of {k} "
        f"tasks: {why}. Keep the tasks and their order, or start a new run."
    )


def _moved(value: Tensor, fresh: Tensor | None, axes: Sequence[int], positions: Positions) -> Tensor:
    kept = [(new, at) for new, at in enumerate(positions) if at is not None]
    shape = [len(positions) if a in axes else n for a, n in enumerate(value.shape)]
    fits = fresh is not None and list(fresh.shape) == shape
    out = fresh.to(value, copy=True) if fits and fresh is not None else value.new_zeros(shape)
    part = value
    for axis in axes:
        part = part.index_select(axis, torch.tensor([at for _, at in kept], device=value.device))
    # The kept block, whatever its axes: a grid of the new places along those that count tasks.
    places = [torch.tensor([new for new, _ in kept]) if a in axes else torch.arange(n) for a, n in enumerate(shape)]
    grid = torch.meshgrid(*[p.to(value.device) for p in places], indexing="ij")
    out[grid] = part
    return out
