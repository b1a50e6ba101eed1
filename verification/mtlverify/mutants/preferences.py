"""Aggregators with an option ``preferences`` that is misunderstood. The docstring of each names the blunder."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import StepView
from mtlverify.mutants.twins import ConeBlend

frozen = dataclasses.dataclass(frozen=True)


@frozen
class PreferencesByPosition(ConeBlend):
    """The first of the tasks present has the first preference, whoever it is."""

    def chosen(self, view: StepView) -> Sequence[float]:
        return [1.0] * view.n_tasks if self.preferences is None else self.preferences[: view.n_tasks]


@frozen
class PreferencesAsTheyCome(ConeBlend):
    """Not divided by their sum."""

    def part(self, chosen: Sequence[float]) -> Tensor:
        return super().part(chosen) if self.preferences is None else torch.tensor(chosen, dtype=torch.float64)


@frozen
class EvenIsNotNone(ConeBlend):
    """Without preferences the sum, with equal ones the mean."""

    def part(self, chosen: Sequence[float]) -> Tensor:
        return super().part(chosen) * (len(chosen) if self.preferences is None else 1.0)


@frozen
class PreferencesBySize(ConeBlend):
    """The largest preference goes to the longest gradient."""

    def shares(self, view: StepView, norms: Tensor) -> Tensor:
        ranked = super().shares(view, norms).sort().values
        return ranked[norms.argsort(stable=True).argsort()]


@frozen
class SquaredPreferences(ConeBlend):
    """Squared, so that ratios count twice."""

    def part(self, chosen: Sequence[float]) -> Tensor:
        return super().part([v * v for v in chosen])


KILLED_BY: dict[type, tuple[str, ...]] = {
    PreferencesByPosition: ("preferences-belong-to-tasks",),
    PreferencesAsTheyCome: ("preferences-belong-to-tasks", "preferences-weigh-losses"),
    EvenIsNotNone: ("preferences-belong-to-tasks", "preferences-weigh-losses"),
    PreferencesBySize: ("preferences-weigh-losses",),
    SquaredPreferences: ("preferences-weigh-losses",),
}
