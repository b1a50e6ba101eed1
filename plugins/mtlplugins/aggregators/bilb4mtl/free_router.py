"""The router without input: one score per task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from mtlcore.contracts import State, StepView
from mtlplugins import adam
from mtlplugins.aggregators.bilb4mtl.router import Router, Rule
from mtlplugins.vectors import Vector, put, take, tensor


@dataclasses.dataclass(frozen=True)
class FreeRouter(Router):
    """Scores (n,) of all tasks, and the state that they are from, with the moments."""

    all_scores: Vector
    state: State

    @classmethod
    def read(cls, state: State) -> FreeRouter:
        """From the state of a step before."""
        return cls(state["router"].tolist(), state)

    @classmethod
    def drawn(cls, state: State, generator: torch.Generator, low: float, high: float) -> FreeRouter:
        """In the first step: scores uniform in [low, high]."""
        unit = torch.rand(len(state["router"]), generator=generator, dtype=torch.float64)
        return cls([u * (high - low) + low for u in unit.tolist()], state)

    def scores(self, view: StepView) -> tuple[Vector, None]:
        """The parameters of the tasks present."""
        return take(self.all_scores, view), None

    def pullback(self, view: StepView, seen: None, gradient: Vector) -> tuple[Vector, None]:
        """The identity: the gradient is that of the tasks present."""
        return gradient, None

    def trained(self, view: StepView, gradient: Iterable[float], rule: Rule) -> State:
        """One step of the parameters of the tasks present."""
        scores = take(self.all_scores, view)
        if rule.optimizer == "sgd":
            moved = [p - rule.lr * g for p, g in zip(scores, gradient)]
            return {"router": tensor(put(self.all_scores, view, moved))}
        old: dict[str, Vector] = {name: self.state[name].tolist() for name in adam.MOMENTS}
        here = {name: take(values, view) for name, values in old.items()}
        moved, new = adam.step_few(scores, gradient, here, lr=rule.lr, beta1=rule.beta1, beta2=rule.beta2, eps=rule.eps)
        moments = {name: tensor(put(old[name], view, values)) for name, values in new.items()}
        return {"router": tensor(put(self.all_scores, view, moved)), **moments}
