"""What optimizers remember, as a value."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore import trajectory
from mtlcore.snapshot.tensors import bits_of, do_all


class History:
    """What optimizers remember: state, options of the groups, plain counters, and what awaits their next step after a
    teleport. All of it is copied.

    Args:
        optimizer: one, several, or None.
        parameters: save the state of these only, and no options. Default: everything.
    """

    def __init__(self, optimizer: trajectory.Optimizers, parameters: Iterable[Tensor] | None = None) -> None:
        known = None if parameters is None else list(parameters)
        self._saved = [_Memory(each, known) for each in trajectory.each(optimizer)]

    def restore(self) -> None:
        """As at construction: same objects, same bits."""
        do_all(saved.restore for saved in self._saved)


class _Memory:
    """One optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor] | None) -> None:
        self._optimizer = optimizer
        self._waiting = dict(trajectory.waiting(optimizer))
        self._state = optimizer.state
        self._keys: list[Any] | None = None if parameters is None else list(parameters)
        kept = self._state if self._keys is None else [p for p in self._keys if p in self._state]
        self._entries = {key: _Entry(self._state[key]) for key in kept}
        whole = parameters is None
        self._groups = [_Entry(group, skip="params") for group in optimizer.param_groups] if whole else []
        plain = (bool, int, float, str)
        self._attributes = {k: v for k, v in vars(optimizer).items() if isinstance(v, plain)} if whole else {}

    def restore(self) -> None:
        waiting = trajectory.waiting(self._optimizer)
        waiting.clear()
        waiting.update(self._waiting)
        for key in list(self._state) if self._keys is None else self._keys:
            if key not in self._entries:
                self._state.pop(key, None)
        for key, entry in self._entries.items():
            self._state[key] = entry.restored()
        for group in self._groups:
            group.restored()
        vars(self._optimizer).update(self._attributes)


class _Entry:
    """A value in an optimizer's state, or a group of options: a table, or anything else."""

    def __init__(self, value: Any, skip: str | None = None) -> None:
        self._value = value
        self._skip = skip
        table = value if isinstance(value, dict) else {None: value}
        self._items = {
            key: (each, _copied(each, option=skip is not None)) for key, each in table.items() if key != skip
        }

    def restored(self) -> Any:
        fresh = {key: _back(each, bits) for key, (each, bits) in self._items.items()}
        if not isinstance(self._value, dict):
            return fresh[None]
        if self._skip is not None:
            fresh = {self._skip: self._value[self._skip], **fresh}
        self._value.clear()
        self._value.update(fresh)
        return self._value


def _copied(value: Any, *, option: bool) -> Any:
    if isinstance(value, Tensor):
        return bits_of(value)
    # An option may be an object of any kind (a process group, a function): nobody writes into it.
    return value if option and not isinstance(value, (dict, list, tuple, set)) else copy.deepcopy(value)


def _back(value: Any, bits: Any) -> Any:
    if isinstance(value, Tensor):
        value.data.copy_(bits)
        return value
    return copy.deepcopy(bits) if isinstance(bits, (dict, list, set)) else bits  # a second restore finds it untouched
