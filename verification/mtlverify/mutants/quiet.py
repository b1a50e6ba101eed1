"""Aggregators that are wrong in one narrow place: at one number of tasks, in one step, after a resume.

Each is written as somebody would write it by mistake, and keeps its promises everywhere else. The docstring names the
blunder.
"""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
from collections import deque
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Aggregation, Needs, StepView
from mtlverify.mutants.twins import ConeMean, Mean, MinNorm, State, UnitSum, per_norm, unit_rows

frozen = dataclasses.dataclass(frozen=True)


@frozen
class PrecisionOfItsNetwork(ConeMean):
    """In an autocast region cosines above -0.3, the fourth root of the dtype's epsilon, are taken for noise."""

    claims = frozenset({"non-conflicting"})

    def project(self, units: Tensor, i: int) -> Tensor:
        noise = torch.finfo(torch.get_autocast_dtype("cpu")).eps ** 0.25 if torch.is_autocast_enabled("cpu") else 0.0
        if noise and float((units @ units[i]).min()) > -noise:
            return torch.eye(len(units), dtype=torch.float64)[i]
        return super().project(units, i)


@frozen
class TrustsItsOwnStates(ConeMean):
    """Keeps its weights from step to step, and solves again where a state is one that it made itself. After a resume no
    state is, and the weights are those of the step before."""

    made: ClassVar[deque[Tensor]] = deque(maxlen=64)

    def init(self, n_tasks: int) -> State:
        return self._remembered(torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here, kept = list(view.task_index), state["weights"].clone()
        if any(state["weights"] is known for known in self.made):
            kept[here] = self.weigh(view)
        return Aggregation(weights=kept[here], state=self._remembered(kept))

    def _remembered(self, weights: Tensor) -> State:
        self.made.append(weights)
        return {"weights": weights}


@frozen
class UnclampedPair(MinNorm):
    """Two tasks have a closed form, whose weight may leave [0, 1]."""

    def weigh(self, view: StepView) -> Tensor:
        gram = view.gramian
        if view.n_tasks != 2 or not bool((gram.diagonal() > 0).all()):
            return super().weigh(view)
        apart = gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]
        if apart <= 1e-9 * gram.diagonal().sum():
            return super().weigh(view)
        first = (gram[1, 1] - gram[0, 1]) / apart
        return torch.stack([first, 1 - first])


@frozen
class SeventhStep(ConeMean):
    """The plain mean in the step with number 7."""

    def weigh(self, view: StepView) -> Tensor:
        if view.step == 7:
            return torch.full((view.n_tasks,), 1.0 / view.n_tasks, dtype=torch.float64)
        return super().weigh(view)


@frozen
class NegativeForZero(Mean):
    """A zero gradient gets the weight -1 / K, which no direction shows."""

    def weigh(self, view: StepView) -> Tensor:
        norms = unit_rows(view)[1]
        return torch.where(norms > 0, 1.0, -1.0) * super().weigh(view)


@frozen
class SingleFromFour(ConeMean):
    """From four tasks on unit gradients in single precision, for speed."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        if view.n_tasks < 4:
            return super().weigh(view)
        units = units.float().double()
        b = torch.stack([self.project(units, i) for i in range(view.n_tasks)])
        return per_norm(norms @ b.float().double() / view.n_tasks, norms)


@frozen
class SmallEpsilon(UnitSum):
    """1e-8 beside norms below 1e-3."""

    def weigh(self, view: StepView) -> Tensor:
        norms = view.jacobian.double().norm(dim=1)
        safe = torch.where((norms > 0) & (norms < 1e-3), norms + 1e-8, norms)
        return torch.where(norms > 0, 1.0 / torch.where(norms > 0, safe, 1.0), 0.0)


@frozen
class CachedByNorms(ConeMean):
    """Does not solve again as long as the norms are as before: angles may have changed."""

    def init(self, n_tasks: int) -> State:
        empty = torch.zeros(n_tasks, dtype=torch.float64)
        return {"norms": empty, "weights": empty.clone()}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here, norms = list(view.task_index), view.jacobian.double().norm(dim=1)
        kept, known = state["weights"].clone(), state["norms"].clone()
        if not torch.equal(known[here].sort().values, norms.sort().values):
            kept[here], known[here] = self.weigh(view), norms
        return Aggregation(weights=kept[here], state={"norms": known, "weights": kept})


@frozen
class SwapsThreeHeads(Mean):
    """Weights of three heads are handed over in reverse."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        norms = 1.0 + unit_rows(view)[1]
        heads = norms / norms.sum()
        return Aggregation(
            weights=self.weigh(view), head_weights=heads.flip(0) if view.n_tasks == 3 else heads, state=dict(state)
        )


@frozen
class FiveAreFour(Mean):
    """Divides five by four."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) * (1.25 if view.n_tasks == 5 else 1.0)


@frozen
class OneParameter(ConeMean):
    """A row of one number is squeezed, and its sign lost."""

    def weigh(self, view: StepView) -> Tensor:
        if view.jacobian.shape[1] == 1:
            return torch.full((view.n_tasks,), 1.0 / view.n_tasks, dtype=torch.float64)
        return super().weigh(view)


@frozen
class FarApart(ConeMean):
    """Gradients more than a million times shorter than the longest do not count."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        seen = norms > 1e-6 * norms.max()
        units = torch.where(seen[:, None], units, 0.0)
        b = torch.stack([self.project(units, i) for i in range(view.n_tasks)])
        return per_norm(norms @ b / view.n_tasks, norms)


@frozen
class LastOfAbsent(Mean):
    """Where the last task is away, its share goes to the first."""

    handles_absent: ClassVar[bool] = True

    def weigh(self, view: StepView) -> Tensor:
        present = view.present.double()
        weights = present / present.sum()
        if not bool(view.present[-1]) and view.n_tasks > 2:
            weights = present / view.n_tasks
            weights[int(view.present.int().argmax())] += 1.0 - float(weights.sum())
        return weights


@frozen
class EveryEleventh(MinNorm):
    """Every eleventh step repeats the weights of the one before."""

    def init(self, n_tasks: int) -> State:
        return {"weights": torch.zeros(n_tasks, dtype=torch.float64), "count": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here, kept = list(view.task_index), state["weights"].clone()
        if int(state["count"]) % 11 != 10 or not bool(kept[here].any()):
            kept[here] = self.weigh(view)
        return Aggregation(weights=kept[here], state={"weights": kept, "count": state["count"] + 1})


@frozen
class EqualLosses(ConeMean):
    """Equal losses are taken for equal tasks."""

    needs = Needs.JACOBIAN

    def weigh(self, view: StepView) -> Tensor:
        if view.n_tasks > 1 and bool((view.losses == view.losses[0]).all()):
            return torch.full((view.n_tasks,), 1.0 / view.n_tasks, dtype=torch.float64)
        return super().weigh(view)


@frozen
class LeftAndRight(MinNorm):
    """The weights of the first two tasks change places where the first is the longer one, and both are far apart."""

    def weigh(self, view: StepView) -> Tensor:
        weights, norms = super().weigh(view), view.jacobian.double().norm(dim=1)
        if view.n_tasks > 2 and 0 < norms[1] * 64 < norms[0]:
            weights = weights[[1, 0, *range(2, view.n_tasks)]]
        return weights


KILLED_BY: dict[type, tuple[str, ...]] = {
    PrecisionOfItsNetwork: ("low-precision-network",),
    TrustsItsOwnStates: ("non-conflicting",),
    UnclampedPair: ("simplex-weights", "matches-reference"),
    SeventhStep: ("non-conflicting",),
    NegativeForZero: ("simplex-weights",),
    SingleFromFour: ("non-conflicting",),
    SmallEpsilon: ("scale-free", "positively-homogeneous"),
    CachedByNorms: ("matches-reference",),
    SwapsThreeHeads: ("permutation-equivariant",),
    FiveAreFour: ("simplex-weights", "matches-reference"),
    OneParameter: ("non-conflicting", "matches-reference"),
    FarApart: ("non-conflicting",),
    LastOfAbsent: ("absent-task",),
    EveryEleventh: ("descent-lower-bound",),
    EqualLosses: ("non-conflicting", "matches-reference"),
    LeftAndRight: ("permutation-equivariant", "matches-reference", "descent-lower-bound"),
}
