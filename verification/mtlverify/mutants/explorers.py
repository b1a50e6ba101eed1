"""Explorers: one correct twin and its broken copies, each next to the laws that must see it."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcore import Explorer, simplex
from mtlcore.exploring import Exploration

frozen = dataclasses.dataclass(frozen=True)
Learnt = Mapping[str, Tensor]


@frozen
class Chain(Explorer):
    """A weighted sum per preference, one model after the other, each starting where the last one ended."""

    points: int = 5

    def search(self, work: Exploration) -> dict[str, Tensor]:
        rows = simplex.grid(len(work.tasks), self.points)
        steps, model, states = work.steps(1.0, len(rows)), work.fresh(), []
        for row in rows:
            self.train(work, model, row, steps)
            states.append({n: v.clone() for n, v in model.state_dict().items()})
        return {"rows": rows} | {f"net.{n}": torch.stack([s[n] for s in states]) for n in states[0]}

    def train(self, work: Exploration, model: nn.Module, row: Tensor, steps: int) -> None:
        """One model."""

        def closure(step: int) -> dict[str, Tensor]:
            losses = work.losses(model, step)
            return {name: share * loss for share, (name, loss) in zip(row.tolist(), losses.items(), strict=True)}

        work.train(closure, *work.split(model), steps=steps)

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        return {n.removeprefix("net."): v[self.nearest(learnt, preference)] for n, v in learnt.items() if n != "rows"}

    def nearest(self, learnt: Learnt, preference: Tensor) -> int:
        """The number of the model."""
        return int((learnt["rows"] - preference).abs().sum(1).argmin())


LAWS = (
    "finite",
    "pure",
    "deterministic",
    "shape-dtype-device",
    "reproducible-from-state",
    "recovers-single-task",
    "monotone-edge",
    "no-dominated-pair",
)


@frozen
class DividesByTheLeast(Chain):
    """Weights that are divided by the smallest preference: infinite at a corner."""

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        scale = 1.0 / preference.min()
        return {n: v + 0.0 * scale for n, v in super().read(learnt, preference).items()}


@frozen
class WritesWhenRead(Chain):
    """Normalises what was learnt in place."""

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        learnt["net.layer.bias"].mul_(0.5)
        return super().read(learnt, preference)


@frozen
class CountsSearches(Chain):
    """Moves a little further in every search of the process."""

    searches: ClassVar[itertools.count[int]] = itertools.count(1)

    def search(self, work: Exploration) -> dict[str, Tensor]:
        found = super().search(work)
        found["net.layer.bias"] = found["net.layer.bias"] + 1e-6 * next(self.searches)
        return found


@frozen
class SingleModels(Chain):
    """Answers in float32."""

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        return {n: v.float() for n, v in super().read(learnt, preference).items()}


@frozen
class RemembersAside(Chain):
    """Keeps a part of what it learnt in the instance."""

    def search(self, work: Exploration) -> dict[str, Tensor]:
        found = super().search(work)
        object.__setattr__(self, "aside", found["net.layer.bias"])
        return found | {"net.layer.bias": torch.zeros_like(found["net.layer.bias"])}

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        found = super().read(learnt, preference)
        aside = getattr(self, "aside", None)
        return found if aside is None else found | {"layer.bias": aside[self.nearest(learnt, preference)]}


@frozen
class Dull(Chain):
    """Mixes equal weights into every preference, more than half."""

    def train(self, work: Exploration, model: nn.Module, row: Tensor, steps: int) -> None:
        super().train(work, model, 0.4 * row + 0.6 / len(row), steps)


@frozen
class SwapsNeighbours(Chain):
    """Mixes up two models in the middle."""

    def nearest(self, learnt: Learnt, preference: Tensor) -> int:
        found = super().nearest(learnt, preference)
        return {1: 3, 3: 1}.get(found, found)


@frozen
class Detours(Chain):
    """Leaves the front everywhere but at the corners, as a curve does that is interpolated in the wrong place."""

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        found = super().read(learnt, preference)
        away = 1.0 - float(preference.max())
        return found | {"layer.bias": found["layer.bias"] + away}


KILLED_BY: dict[type, tuple[str, ...]] = {
    DividesByTheLeast: ("finite",),
    WritesWhenRead: ("pure",),
    CountsSearches: ("deterministic",),
    SingleModels: ("shape-dtype-device",),
    RemembersAside: ("reproducible-from-state",),
    Dull: ("recovers-single-task",),
    SwapsNeighbours: ("monotone-edge",),
    Detours: ("no-dominated-pair",),
}
"""Mutant -> ids of the laws that must refute it."""
