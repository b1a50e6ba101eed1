"""Preferences between tasks: points of the simplex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError
from mtlcore.safety import shown

TOLERANCE = 1e-6
"""How far the sum of a preference may be from 1: decimal numbers such as 0.1 are rounded."""


def preference(given: Any, tasks: Sequence[str]) -> Tensor:
    """(K,) float64 with sum 1, from a sequence, a tensor or {task: number}.

    Raises:
        ConfigurationError: not one number per task, a negative or infinite one (the task is named), or another sum.
    """
    if isinstance(given, Mapping):
        strangers = [name for name in given if name not in tasks]
        if strangers:
            raise ConfigurationError(f"preference names {shown(strangers[0])}; the tasks are {', '.join(tasks)}.")
        given = [given.get(name, 0.0) for name in tasks]
    try:
        found = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"preference {shown(given)} is not one number per task.") from error
    if found.shape != (len(tasks),):
        raise ConfigurationError(
            f"preference has the shape {tuple(found.shape)}; it needs one number for each of the {len(tasks)} tasks "
            f"{', '.join(tasks)}."
        )
    for name, value in zip(tasks, found.tolist(), strict=True):
        if not 0.0 <= value <= 1.0 + TOLERANCE:
            raise ConfigurationError(f"preference of task {name!r} is {value:g}; it must be in [0, 1].")
    total = float(found.sum())
    if total == 0.0:
        raise ConfigurationError(f"the preference is 0 for every task; give {', '.join(tasks)} a share each.")
    if abs(total - 1.0) > TOLERANCE:
        raise ConfigurationError(f"the preference sums to {total:g}; divide it by its sum.")
    return found / total


def grid(n_tasks: int, count: int) -> Tensor:
    """(count, K) preferences that cover the simplex: for two tasks evenly spaced from one end to the other; for more
    the K corners, the centre, then the points of the Halton sequence, in the simplex by its order statistics. [choice]

    Raises:
        ConfigurationError: fewer points than tasks: some task would have no model of its own.
    """
    if count < n_tasks:
        raise ConfigurationError(f"{count} preferences cannot hold the corners of {n_tasks} tasks; take {n_tasks}.")
    if n_tasks == 1:
        return torch.ones(count, 1, dtype=torch.float64)
    if n_tasks == 2:
        first = torch.linspace(1.0, 0.0, count, dtype=torch.float64)
        return torch.stack([first, 1.0 - first], dim=1)
    corners = torch.eye(n_tasks, dtype=torch.float64)
    centre = torch.full((1, n_tasks), 1.0 / n_tasks, dtype=torch.float64)
    inner = [_spaced(n_tasks, i + 1) for i in range(max(0, count - n_tasks - 1))]
    return torch.cat([corners, centre, *inner])[:count]


def _spaced(n_tasks: int, index: int) -> Tensor:
    """(1, K): the gaps between sorted numbers are a point of the simplex, evenly distributed if the numbers are."""
    cuts = sorted(_van_der_corput(index, base) for base in _primes(n_tasks - 1))
    ends = torch.tensor([0.0, *cuts, 1.0], dtype=torch.float64)
    return ends.diff()[None]


def _van_der_corput(index: int, base: int) -> float:
    value, share = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        share /= base
        value += digit * share
    return value


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % p for p in found):
            found.append(candidate)
        candidate += 1
    return found
