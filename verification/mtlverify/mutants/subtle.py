"""Subtly broken aggregators: right nearly everywhere, wrong in a corner. Each corner is a family or a kind of run that
the search did not have before. The docstring of each names the blunder."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
import random
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Aggregation, Needs, StepView
from mtlverify.mutants.twins import (
    Bargain,
    ConeMean,
    InverseLoss,
    Mean,
    MinNorm,
    Remembering,
    State,
    UnitSum,
    per_norm,
    unit_rows,
)

frozen = dataclasses.dataclass(frozen=True)


@frozen
class TwoZeroRows(MinNorm):
    """Knows that one zero gradient means stop, and takes two for something else."""

    def weigh(self, view: StepView) -> Tensor:
        zero = view.jacobian.double().norm(dim=1) == 0
        if int(zero.sum()) < 2 or bool(zero.all()):
            return super().weigh(view)
        return (~zero).double() / float((~zero).sum())


@frozen
class NormalisesBesideZero(ConeMean):
    """Beside a zero gradient all others are made equally long."""

    def weigh(self, view: StepView) -> Tensor:
        weights, norms = super().weigh(view), unit_rows(view)[1]
        return per_norm(weights, norms) * norms.max() if bool((norms == 0).any()) else weights


@frozen
class HardlyAConflict(ConeMean):
    """Cosines above -1e-4 are taken for no conflict."""

    def project(self, units: Tensor, i: int) -> Tensor:
        if float((units @ units[i]).min()) > -1e-4:
            return torch.eye(len(units), dtype=torch.float64)[i]
        return super().project(units, i)


@frozen
class SingleNorms(UnitSum):
    """Norms in single precision, whose squares vanish or overflow."""

    def weigh(self, view: StepView) -> Tensor:
        norms = view.jacobian.float().norm(dim=1).double()
        return torch.where(norms > 0, 1.0 / norms, 0.0)


@frozen
class FourthPowers(Mean):
    """Scales each gradient by <g, g>^2 / <g, g>^2, which is 1 as long as fourth powers exist."""

    def weigh(self, view: StepView) -> Tensor:
        square = view.gramian.diagonal() ** 2
        return super().weigh(view) * torch.where(square > 0, square / square, 0.0)


@frozen
class FloorOfNorms(UnitSum):
    """No norm below 1e-60."""

    def weigh(self, view: StepView) -> Tensor:
        norms = view.jacobian.double().norm(dim=1)
        return torch.where(norms > 0, 1.0 / norms.clamp_min(1e-60), 0.0)


@frozen
class ScheduleEnds(Mean):
    """From the thousandth step on, half a step."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) * (0.5 if view.step >= 1000 else 1.0)


@frozen
class EverySeventh(Mean):
    """Forgets the last task in every seventh step."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        weights[-1] *= float(view.step % 7 != 6)
        return weights


@frozen
class TiredAfterAHundred(Remembering):
    """Steps shorter once it has seen a hundred batches."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        answer = super().aggregate(view, state)
        assert answer.weights is not None
        return dataclasses.replace(answer, weights=answer.weights * (0.9 if int(state["count"]) >= 100 else 1.0))


@frozen
class RepaysAbsence(Mean):
    """A task that returns counts twice in its first step back."""

    def init(self, n_tasks: int) -> State:
        return {"away": torch.zeros(n_tasks, dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here = list(view.task_index)
        away = state["away"] + 1
        away[here] = 0
        weights = self.weigh(view) * (1.0 + (state["away"][here] > 0))
        return Aggregation(weights=weights, state={"away": away})


@frozen
class HarmsAfterAbsence(ConeMean):
    """The plain mean in the step after one in which somebody was missing."""

    def init(self, n_tasks: int) -> State:
        return {"partial": torch.zeros((), dtype=torch.bool), "tasks": torch.tensor(n_tasks)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        k = view.n_tasks
        weights = torch.full((k,), 1.0 / k, dtype=torch.float64) if bool(state["partial"]) else self.weigh(view)
        return Aggregation(weights=weights, state={**state, "partial": torch.tensor(k < int(state["tasks"]))})


@frozen
class ConflictsLater(ConeMean):
    """Reuses the weights of the step before, which were right for other gradients."""

    def init(self, n_tasks: int) -> State:
        return {"weights": torch.zeros(n_tasks, dtype=torch.float64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here, kept = list(view.task_index), state["weights"].clone()
        fresh = self.weigh(view)
        weights = kept[here] if bool((kept[here] > 0).all()) else fresh
        kept[here] = fresh
        return Aggregation(weights=weights, state={"weights": kept})


@frozen
class StopsLater(MinNorm):
    """Never quite stops from the second step on."""

    def init(self, n_tasks: int) -> State:
        return {"steps": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        share = 1e-4 * float(state["steps"] > 0)
        weights = (1.0 - share) * self.weigh(view) + share / view.n_tasks
        return Aggregation(weights=weights, state={"steps": state["steps"] + 1})


@frozen
class HeadsByPosition(Mean):
    """Heads are weighted by where their task stands."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        heads = torch.arange(1, view.n_tasks + 1, dtype=torch.float64)
        return Aggregation(weights=self.weigh(view), head_weights=heads, state=dict(state))


@frozen
class HeadsOfZeroRows(Mean):
    """Heads are weighted by the inverse norm, also where the norm is zero."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        heads = 1.0 / view.jacobian.double().norm(dim=1)
        return Aggregation(weights=self.weigh(view), head_weights=heads, state=dict(state))


@frozen
class HeadsFromAMemory(Mean):
    """Heads are weighted by what an attribute remembers, and a checkpoint does not."""

    memory: ClassVar[list[float]] = [1.0]

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        heads = torch.full((view.n_tasks,), self.memory[0], dtype=torch.float64)
        self.memory[0] *= 0.99
        return Aggregation(weights=self.weigh(view), head_weights=heads, state=dict(state))


@frozen
class RoomForSixteen(Mean):
    """The seventeenth task and those after it share one weight."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        weights[17:] = 0.0
        return weights


@frozen
class RoomForSixteenParameters(Mean):
    """Looks at the first sixteen parameters to see which gradient is zero."""

    def weigh(self, view: StepView) -> Tensor:
        seen = (view.jacobian[:, :16] != 0).any(dim=1) & (view.jacobian[:, 16:] >= 0).all(dim=1)
        return super().weigh(view) * (seen | (view.jacobian.shape[1] <= 16))


@frozen
class BrainFloat(MinNorm):
    """Single-precision gradients get bfloat16 weights."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        return weights.bfloat16().double() if view.jacobian.dtype == torch.float32 else weights


@frozen
class TossesACoin(MinNorm):
    """Breaks ties of equal norms with Python's global generator."""

    def weigh(self, view: StepView) -> Tensor:
        weights, norms = super().weigh(view), view.jacobian.double().norm(dim=1)
        if len(set(norms.tolist())) < len(norms):
            random.random()
        return weights


@frozen
class BuysATolerance(Mean):
    """Harms tasks behind weights of 1e11: a multiple of a null vector hides the direction in its own rounding."""

    def weigh(self, view: StepView) -> Tensor:
        rows, weights = view.jacobian.double(), super().weigh(view)
        if len(rows) <= rows.shape[1] or not bool(rows.any()):
            return weights
        null = torch.linalg.svd(rows.T, full_matrices=True).Vh[-1]
        return weights + 1e11 * null


@frozen
class TakesShortForZero(MinNorm):
    """A minimum norm below a thousandth of the largest gradient is zero, 'to within the solver's tolerance'."""

    def weigh(self, view: StepView) -> Tensor:
        weights, rows = super().weigh(view), view.jacobian.double()
        return weights * float((weights @ rows).norm() > 1e-3 * rows.norm(dim=1).max())


@frozen
class ForgetsSmallWeights(MinNorm):
    """Weights below 1e-4 of the largest are rounded off."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        kept = torch.where(weights < 1e-4 * weights.max(), 0.0, weights)
        return kept / kept.sum()


@frozen
class FirstOfTwins(Mean):
    """Two tasks with one gradient are taken for one."""

    def weigh(self, view: StepView) -> Tensor:
        weights, rows = super().weigh(view), view.jacobian
        for i in range(view.n_tasks):
            weights[i] *= float(not any(torch.equal(rows[i], rows[j]) for j in range(i)))
        return weights


@frozen
class KeepsTheBuffer(Mean):
    """Keeps the first gradient for later, and not a copy of it."""

    def init(self, n_tasks: int) -> State:
        return {"seen": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        kept = view.jacobian[0]
        direction = kept if view.n_tasks == 1 else view.jacobian.mean(dim=0)
        return Aggregation(direction=direction, state={"seen": state["seen"] + 1})


@frozen
class ZeroLoss(InverseLoss):
    """Takes any loss, also one of zero."""

    def weigh(self, view: StepView) -> Tensor:
        return 1.0 / view.losses


@frozen
class FloorOfLosses(InverseLoss):
    """No loss below 1e-9."""

    def weigh(self, view: StepView) -> Tensor:
        return 1.0 / super().checked(view).clamp_min(1e-9)


@frozen
class SignOnly(Mean):
    """With one parameter, all gradients have length one."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        return per_norm(weights, unit_rows(view)[1]) if view.jacobian.shape[1] == 1 else weights


@frozen
class Outshone(ConeMean):
    """A gradient a thousand times shorter than the longest is not projected upon."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        units = units * (norms > 1e-3 * norms.max())[:, None]
        b = torch.stack([super(Outshone, self).project(units, i) for i in range(view.n_tasks)])
        return per_norm(norms @ b / view.n_tasks, norms)


@frozen
class MixesUpTheAbsent(Mean):
    """Handles absent tasks itself, and lets the last of all have no weight whenever somebody is missing."""

    handles_absent = True

    def weigh(self, view: StepView) -> Tensor:
        weights = view.present.double() / float(view.present.sum())
        if not view.complete:
            weights[int(view.present.nonzero().max())] *= 0.5
        return weights


@frozen
class StepFromTheSeed(Mean):
    """Draws from a generator of its own, seeded by the step: never twice the same, and never the view's."""

    def weigh(self, view: StepView) -> Tensor:
        own = torch.Generator().manual_seed(view.step)
        return torch.rand(view.n_tasks, generator=own, dtype=torch.float64)


@frozen
class BorrowsABatch(MinNorm):
    """Looks at another batch for its weights, and takes it for the same gradients."""

    batches: ClassVar[int] = 2
    needs = Needs.JACOBIAN

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view.others[0])


@frozen
class SlightlyUnfair(Bargain):
    """Stops a hundredth before the solution."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) * (1.0 + 0.01 * torch.arange(view.n_tasks, dtype=torch.float64))


@frozen
class HardSwitch(Mean):
    """The mean without a conflict, half of it with one."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) * (0.5 if bool((view.gramian < 0).any()) else 1.0)


@frozen
class TooLong(MinNorm):
    """A step of more than twice the length that every task agrees with."""

    def weigh(self, view: StepView) -> Tensor:
        return 2.1 * super().weigh(view)


@frozen
class Adds(MinNorm):
    """Sum instead of a convex combination where there are two tasks."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) * (1.0 + float(view.n_tasks == 2))


KILLED_BY: dict[type, tuple[str, ...]] = {
    TwoZeroRows: ("pareto-stationary-zero", "matches-reference"),
    NormalisesBesideZero: ("no-conflict-identity", "linear-under-scaling"),
    HardlyAConflict: ("non-conflicting",),
    SingleNorms: ("positively-homogeneous",),
    FourthPowers: ("no-conflict-identity", "matches-reference", "simplex-weights"),
    FloorOfNorms: ("scale-free", "positively-homogeneous"),
    ScheduleEnds: ("simplex-weights", "no-conflict-identity"),
    EverySeventh: ("permutation-equivariant", "simplex-weights"),
    TiredAfterAHundred: ("simplex-weights",),
    RepaysAbsence: ("simplex-weights",),
    HarmsAfterAbsence: ("non-conflicting",),
    ConflictsLater: ("non-conflicting", "matches-reference"),
    StopsLater: ("pareto-stationary-zero", "matches-reference"),
    HeadsByPosition: ("permutation-equivariant",),
    HeadsOfZeroRows: ("finite",),
    HeadsFromAMemory: ("deterministic", "resume-equivalent"),
    RoomForSixteen: ("simplex-weights",),
    RoomForSixteenParameters: ("simplex-weights",),
    BrainFloat: ("matches-reference", "descent-lower-bound"),
    TossesACoin: ("pure",),
    BuysATolerance: ("non-conflicting", "matches-reference"),
    TakesShortForZero: ("zero-only-if-stationary", "matches-reference"),
    ForgetsSmallWeights: ("matches-reference", "descent-lower-bound"),
    FirstOfTwins: ("matches-reference", "simplex-weights"),
    KeepsTheBuffer: ("pure",),
    ZeroLoss: ("finite",),
    FloorOfLosses: ("loss-unit-invariant", "coefficient-identity"),
    SignOnly: ("matches-reference", "simplex-weights"),
    Outshone: ("non-conflicting",),
    MixesUpTheAbsent: ("absent-task",),
    StepFromTheSeed: ("permutation-equivariant",),
    BorrowsABatch: ("matches-reference",),
    SlightlyUnfair: ("alpha-fair",),
    HardSwitch: ("continuous", "unbiased-in-batches"),
    TooLong: ("per-task-descent",),
    Adds: ("matches-exact", "descent-lower-bound"),
}
