"""The router without input: one score per task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mtlcore.contracts import State, StepView
from mtlplugins import adam
from mtlplugins.aggregators.bilb4mtl.router import Rule
from mtlplugins.vectors import Vector, matrix, put, take


class FreeRouter(NamedTuple):
    """A :class:`.router.Router`: its rows for all n tasks, and for those of the view."""

    all_rows: list[Vector]
    rows: list[Vector]

    @classmethod
    def read(cls, view: StepView, state: State) -> FreeRouter:
        """From the state of a step before."""
        return cls.of(view, state["router"].tolist())

    @classmethod
    def drawn(cls, view: StepView, state: State, low: float, high: float) -> FreeRouter:
        """In the first step: scores uniform in [low, high]."""
        _, *moments = state["router"].tolist()
        unit = torch.rand(state["router"].shape[1], generator=view.generator, dtype=torch.float64, device="cpu")
        return cls.of(view, [[u * (high - low) + low for u in unit.tolist()], *moments])

    @classmethod
    def of(cls, view: StepView, rows: list[Vector]) -> FreeRouter:
        """From the rows of all tasks."""
        here = rows if len(rows[0]) == view.n_tasks else [take(row, view) for row in rows]
        return cls(rows, here)

    def scores(self, view: StepView) -> tuple[Vector, None]:
        """The parameters of the tasks present."""
        return self.rows[0], None

    def pullback(self, view: StepView, seen: None, gradient: Vector) -> tuple[Vector, None]:
        """The identity: the gradient is that of the tasks present."""
        return gradient, None

    def trained(self, view: StepView, gradient: Iterable[float], rule: Rule) -> Tensor:
        """One step of the parameters of the tasks present."""
        scores, *moments = self.rows
        if moments:
            if rule.unit != 1.0:
                gradient = [g / rule.unit for g in gradient]
            new = adam.step_few(scores, gradient, moments, rule.lr, rule.beta1, rule.beta2, rule.eps)
        else:
            new = [[p - rule.lr * g for p, g in zip(scores, gradient)]]
        if self.rows is not self.all_rows:
            new = [put(before, view, row) for before, row in zip(self.all_rows, new)]
        return matrix(new)
