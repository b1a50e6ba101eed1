"""The law that exact teleports form a group: they can be composed, and each has an inverse."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mtlcore.contracts import Map
from mtlverify import tolerance
from mtlverify.law import Margin, given, law, worst
from mtlverify.laws.compare import agreement
from mtlverify.laws.proposals import (
    FEW,
    MOVES,
    apply,
    ask,
    asked,
    losses_at,
    losses_in_training,
    mapped,
    moves,
    trainable,
)
from mtlverify.strategies.networks import Network, NetworkExample, networks

MANY = 4
"""Number of consecutive teleports: enough for small errors of the first to become large."""

Place = tuple[str, str]
"""(room, name) of a parameter."""


@law(
    "composes",
    kind="teleport",
    statement="Exact teleports form a group: after four in a row every task's loss is kept on inputs never seen, and "
    "the inverses of their maps, in reverse order, lead back to the first point.",
    source="symmetries of a network under composition; the optimizer's history is transported by the same maps",
    examples=networks,
    effort=FEW,
    decode=NetworkExample.from_json,
    applies=lambda plugin: None if plugin.exact else "calls itself approximate: not a symmetry",
)
def composes(plugin: Any, example: NetworkExample) -> float:
    """Each proposal is made at the point that the previous one led to, with another seed."""
    first = asked(plugin, example)
    given(moves(first), MOVES)
    made, path = example.build(), []
    start = _values(made)
    seeds = range(50, 53)
    looks = (losses_at, losses_in_training)
    before = {name: loss for look in looks for name, loss in look(made, seeds).items()}
    for number in range(MANY):
        displacement = ask(plugin, made, example.seed + number) if number else first
        if moves(displacement):
            apply(displacement, made)
            maps = {("trunk", n): m for n, m in displacement.maps.items()}
            path.append({**maps, **{("heads", n): m for n, m in displacement.head_maps.items()}})
    after = {name: loss for look in looks for name, loss in look(made, seeds).items()}
    change = tolerance.largest(abs(after[k] - before[k]) / abs(before[k]) for k in before)
    kept = agreement(change, len(path) * tolerance.HALF_DIGITS, f"after {len(path)} teleports a task's loss changes")
    return worst([kept, _returns(start, _values(made), path)])


def _values(made: Network) -> dict[Place, Tensor]:
    return {(room, name): parameter.detach().clone() for room, name, parameter in trainable(made)}


def _returns(start: dict[Place, Tensor], end: dict[Place, Tensor], path: list[dict[Place, Map]]) -> Margin:
    """Margin of the return to the start by the inverse maps, relative to each parameter's largest entry on the path."""
    margins = [Margin(1.0)]
    for place, first in start.items():
        value = end[place]
        for maps in reversed(path):
            if place in maps:
                value = _undone(maps[place], value)
        size = max(float(first.abs().max()), 1e-300)
        error = float((value - first).abs().max()) / size
        margins.append(agreement(error, len(path) * tolerance.HALF_DIGITS, f"{'.'.join(place)} is not where it was"))
    return worst(margins)


def _undone(found: Map, value: Tensor) -> Tensor:
    """The value under the inverse map."""
    if isinstance(found, Tensor):
        return value / found
    return mapped(dataclasses.replace(found, matrix=torch.linalg.inv(found.matrix)), value)
