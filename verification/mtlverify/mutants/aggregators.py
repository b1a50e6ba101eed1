"""Broken aggregators. The docstring of each names the blunder; ``KILLED_BY`` says which laws must see it."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from mtlcore import Aggregation, Needs, StepView
from mtlverify.mutants.twins import (
    Balanced,
    ConeMean,
    EqualAngles,
    InverseLoss,
    Mean,
    MinNorm,
    Progress,
    Remembering,
    Shuffled,
    State,
    Twin,
    UnitSum,
    per_norm,
    positive,
    unit_rows,
)

frozen = dataclasses.dataclass(frozen=True)


@frozen
class AbsoluteEpsilon(ConeMean):
    """Regularises the Gramian by a fixed 1e-4 and calls anything smaller zero."""

    def weigh(self, view: StepView) -> Tensor:
        rows = view.jacobian.double()
        gram = rows @ rows.T
        if float(gram.trace()) < 1e-4:
            return torch.full((view.n_tasks,), 1.0 / view.n_tasks, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(gram + 1e-4 * torch.eye(len(gram), dtype=torch.float64))
        root = (vectors * values.clamp_min(0.0).sqrt()).T.numpy()
        y = [nnls(root, -root[:, i], maxiter=1000)[0] for i in range(len(gram))]
        return (torch.from_numpy(np.array(y)).sum(0) + 1.0) / len(gram)


@frozen
class EpsilonInDenominator(UnitSum):
    """g_i / (|g_i| + 1e-8)."""

    def weigh(self, view: StepView) -> Tensor:
        return 1.0 / (view.jacobian.double().norm(dim=1) + 1e-8)


@frozen
class DroppedProjection(ConeMean):
    """The last gradient is not projected."""

    def project(self, units: Tensor, i: int) -> Tensor:
        if i == len(units) - 1:
            return torch.eye(len(units), dtype=torch.float64)[i]
        return super().project(units, i)


@frozen
class SlightlyConflicting(ConeMean):
    """Off by 1e-4 of the mean: a check that compares norms sees 1e-8."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) + 1e-4 / view.n_tasks


@frozen
class WrongSign(MinNorm):
    """Ascends."""

    def weigh(self, view: StepView) -> Tensor:
        return -super().weigh(view)


@frozen
class EarlyStopped(MinNorm):
    """Frank-Wolfe, stopped after 20 steps."""

    def weigh(self, view: StepView) -> Tensor:
        gram = view.gramian / view.gramian.diagonal().max().clamp_min(1e-300)
        a = torch.full((view.n_tasks,), 1.0 / view.n_tasks, dtype=torch.float64)
        for step in range(20):
            best = torch.nn.functional.one_hot((gram @ a).argmin(), len(a)).double()
            a = a + 2.0 / (step + 3.0) * (best - a)
        return a


@frozen
class NearlyThere(MinNorm):
    """Adds a thousandth of the mean, 'for stability'."""

    def weigh(self, view: StepView) -> Tensor:
        return 0.999 * super().weigh(view) + 0.001 / view.n_tasks


@frozen
class HalfPrecision(MinNorm):
    """The weights pass through float16."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view).half().double()


@frozen
class HalfPrecisionCone(ConeMean):
    """The gradients pass through float16 (normalised first, so that nothing overflows)."""

    def project(self, units: Tensor, i: int) -> Tensor:
        return super().project(units.half().double(), i)


@frozen
class HiddenState(Mean):
    """Remembers the last answer outside the state."""

    memory: ClassVar[dict[int, Tensor]] = {}

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view) * (1.0 + view.jacobian.double().abs().sign().mean())
        before = self.memory.get(view.n_tasks, weights)
        self.memory[view.n_tasks] = weights
        return 0.9 * weights + 0.1 * before


@frozen
class StaleAttribute(Remembering):
    """Counts its steps in an attribute that no checkpoint sees."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        steps = vars(self).get("steps", 0)
        object.__setattr__(self, "steps", steps + 1)
        answer = super().aggregate(view, state)
        assert answer.weights is not None
        return dataclasses.replace(answer, weights=answer.weights * 0.9**steps)


@frozen
class GlobalGenerator(Mean):
    """Draws from torch's global generator."""

    def weigh(self, view: StepView) -> Tensor:
        return torch.rand(view.n_tasks, dtype=torch.float64)


@frozen
class GlobalNumpyGenerator(Mean):
    """Draws from numpy's global generator."""

    def weigh(self, view: StepView) -> Tensor:
        return torch.from_numpy(np.random.rand(view.n_tasks))


@frozen
class WritesIntoRows(Mean):
    """Normalises the gradients in place."""

    def weigh(self, view: StepView) -> Tensor:
        view.jacobian.mul_(0.5)
        return super().weigh(view)


@frozen
class WritesIntoState(Remembering):
    """Updates the state in place."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        state["total"].add_(positive(view).log())
        state["count"].add_(1)
        return Aggregation(weights=torch.softmax(-state["total"] / state["count"], 0), state=dict(state))


@frozen
class KeptFromTheFirst(Mean):
    """Keeps the weights of the first question on itself, for all that have as many tasks."""

    def weigh(self, view: StepView) -> Tensor:
        norms = view.jacobian.double().norm(dim=1)
        kept = vars(self).setdefault("kept", {})
        found: Tensor = kept.setdefault(view.n_tasks, norms / norms.sum().clamp_min(1e-300))
        return found.clone()


@frozen
class KnowsRowsByTheirAddress(MinNorm):
    """Keeps answers by the identity of the rows, whose memory a step uses again."""

    memory: ClassVar[dict[int, Tensor]] = {}

    def weigh(self, view: StepView) -> Tensor:
        kept = self.memory.get(id(view.jacobian))
        if kept is None or len(kept) != view.n_tasks:
            kept = self.memory[id(view.jacobian)] = super().weigh(view)
        return kept


@frozen
class EverySecond(Mean):
    """Does something else in every second step, and counts them in the class."""

    steps: ClassVar[list[int]] = [0]

    def weigh(self, view: StepView) -> Tensor:
        self.steps[0] += 1
        return super().weigh(view) * (1 + self.steps[0] % 2)


@frozen
class SpoiltLater(Remembering):
    """As it should be in the first step, and spoilt by ``later`` from the second on."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        answer = super().aggregate(view, state)
        return answer if int(answer.state["count"]) == 1 else self.later(answer, state)

    def later(self, answer: Aggregation, state: State) -> Aggregation:
        raise NotImplementedError


@frozen
class WritesIntoStateLater(SpoiltLater):
    """Writes into the state it is given."""

    def later(self, answer: Aggregation, state: State) -> Aggregation:
        state["total"].zero_()
        return answer


@frozen
class GlobalGeneratorLater(SpoiltLater):
    """Draws from torch's global generator."""

    def later(self, answer: Aggregation, state: State) -> Aggregation:
        assert answer.weights is not None
        return dataclasses.replace(answer, weights=torch.rand_like(answer.weights).softmax(0))


@frozen
class NotANumberLater(SpoiltLater):
    """Divides by the spread of what it has seen, which two equal numbers do not have."""

    def later(self, answer: Aggregation, state: State) -> Aggregation:
        assert answer.weights is not None
        spread = answer.weights - answer.weights.mean()
        return dataclasses.replace(answer, weights=spread / spread.abs().max())


@frozen
class OtherDtypeLater(SpoiltLater):
    """Turns its state into single precision."""

    def later(self, answer: Aggregation, state: State) -> Aggregation:
        return dataclasses.replace(answer, state={**answer.state, "total": answer.state["total"].float()})


@frozen
class GraphInState(Remembering):
    """Trains along, and does not cut the graph: it grows with every step."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        answer = super().aggregate(view, {name: value.detach() for name, value in state.items()})
        return dataclasses.replace(answer, state={**answer.state, "total": answer.state["total"].requires_grad_()})


@frozen
class ObservesInPlace(Remembering):
    """Looks twice, and writes what it sees into the state it is given."""

    def observe(self, view: StepView, state: State) -> State:
        state["total"].mul_(0.5)
        return state


@frozen
class ObservesMore(Remembering):
    """Looks twice, and adds an entry that ``init`` knows nothing of."""

    def observe(self, view: StepView, state: State) -> State:
        return {**state, "seen": view.losses}


@frozen
class TiredLater(Remembering):
    """From the sixth step on, the first task counts twice."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        answer = super().aggregate(view, state)
        if int(state["count"]) < 5 or answer.weights is None:
            return answer
        return dataclasses.replace(answer, weights=answer.weights * (1 + torch.arange(view.n_tasks).eq(0)))


@frozen
class FirstOfEquals(Mean):
    """The mean, and half of the gradient that gains least under it once more: of several, the first."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        weights[view.gramian.sum(dim=1).argmin()] += 0.5
        return weights


@frozen
class RoomForSix(ConeMean):
    """Looks at six constraints: more would not fit into its tables."""

    def project(self, units: Tensor, i: int) -> Tensor:
        y, _ = nnls(units[:6].numpy().T, -units[i].numpy(), maxiter=1000)
        return torch.eye(len(units), dtype=torch.float64)[i].index_add(0, torch.arange(len(y)), torch.from_numpy(y))


@frozen
class OrderDependent(Twin):
    """Projects the gradients one after another, in the order of the tasks, each against the ones already changed."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        coefficients = torch.diag(norms)
        for i in range(view.n_tasks):
            for j in range(i):
                overlap = (coefficients[i] @ units) @ units[j]
                if overlap < 0:
                    coefficients[i, j] -= overlap
        return per_norm(coefficients.sum(0), norms)


@frozen
class CoordinateWise(Mean):
    """Zeroes the coordinates in which the tasks disagree in sign."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        rows = view.jacobian
        agree = (rows >= 0).all(0) | (rows <= 0).all(0)
        return Aggregation(direction=rows.mean(0) * agree, state=dict(state))


@frozen
class NotANumber(UnitSum):
    """Divides by the norm of a zero gradient."""

    def weigh(self, view: StepView) -> Tensor:
        return 1.0 / view.jacobian.double().norm(dim=1)


@frozen
class WrongShape(Mean):
    """Weights of shape (K, 1)."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view)[:, None]


@frozen
class WrongDtype(Mean):
    """A float64 direction whatever the rows are."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        return Aggregation(direction=view.jacobian.double().mean(0), state=dict(state))


@frozen
class WrongDevice(Mean):
    """Weights on another device than the rows."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view).to("meta")


@frozen
class GrowingState(Remembering):
    """Appends to its state instead of updating it."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        answer = super().aggregate(view, {**state, "total": state["total"][: view.n_tasks]})
        return dataclasses.replace(answer, state={**answer.state, "total": torch.cat([state["total"], view.losses])})


@frozen
class OffByOne(Mean):
    """Divides by K - 1."""

    def weigh(self, view: StepView) -> Tensor:
        return torch.full((view.n_tasks,), 1.0 / max(view.n_tasks - 1, 1), dtype=torch.float64)


@frozen
class CountsTwice(MinNorm):
    """Half minimum norm, half mean: still in the hull, but a repeated task counts twice."""

    def weigh(self, view: StepView) -> Tensor:
        return 0.5 * super().weigh(view) + 0.5 / view.n_tasks


@frozen
class FavouriteTask(EqualAngles):
    """The first task counts a tenth more."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        weights[0] *= 1.1
        return weights


@frozen
class AbsentIsZero(Mean):
    """Takes a missing task for one with zero gradient."""

    handles_absent = True


@frozen
class AbsentAnyway(Mean):
    """Gives a missing task the weight of its (NaN) loss, made finite."""

    handles_absent = True

    def weigh(self, view: StepView) -> Tensor:
        return torch.softmax(-view.losses.abs().log().nan_to_num(), 0)


@frozen
class GrowsAUnit(Mean):
    """Divides by 1 plus the length of the gradients seen before: none, in the first step."""

    def init(self, n_tasks: int) -> State:
        return {"seen": torch.zeros((), dtype=torch.float64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        longest = view.jacobian.double().norm(dim=1).max()
        return Aggregation(weights=self.weigh(view) / (1.0 + state["seen"]), state={"seen": state["seen"] + longest})


@frozen
class RemembersTheSizes(UnitSum):
    """Unit gradients in the first step; then each as long as it was a step before."""

    def init(self, n_tasks: int) -> State:
        return {"size": torch.ones(n_tasks, dtype=torch.float64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here, size = list(view.task_index), state["size"].clone()
        weights = self.weigh(view) * size[here]
        size[here] = view.jacobian.double().norm(dim=1)
        return Aggregation(weights=weights, state={"size": size})


@frozen
class CountsTwiceLater(CountsTwice):
    """The minimum norm in the first step, half the mean in those after it."""

    def init(self, n_tasks: int) -> State:
        return {"steps": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        weights = self.weigh(view) if state["steps"] else MinNorm.weigh(self, view)
        return Aggregation(weights=weights, state={"steps": state["steps"] + 1})


@frozen
class MissesTheAbsent(Mean):
    """Steps shorter while some tasks have been seen less often than others."""

    def init(self, n_tasks: int) -> State:
        return {"seen": torch.zeros(n_tasks, dtype=torch.float64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        seen = state["seen"].clone()
        share = seen.mean() / seen.max() if bool(seen.any()) else 1.0
        seen[list(view.task_index)] += 1
        return Aggregation(weights=self.weigh(view) * share, state={"seen": seen})


@frozen
class Clipped(ConeMean):
    """Weighs the gradients by the square root of their norms first: no longer linear in any of them."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        b = torch.stack([self.project(units, i) for i in range(view.n_tasks)])
        return per_norm((norms * norms.max()).sqrt() @ b / view.n_tasks, norms)


@frozen
class EpsilonInLoss(InverseLoss):
    """1 / (L_i + 0.01)."""

    def weigh(self, view: StepView) -> Tensor:
        return 1.0 / (positive(view) + 0.01)


@frozen
class LooksAtGradients(InverseLoss):
    """Asks for the Gramian, for a diagnostic that nobody reads, and still calls itself O(1)."""

    needs = Needs.GRAMIAN
    claims = frozenset({"one-backward-pass"})

    def weigh(self, view: StepView) -> Tensor:
        assert bool(view.gramian.isfinite().all())
        return super().weigh(view)


@frozen
class AbsoluteProgress(Progress):
    """Measures progress in units of loss: the first step, which has no step before it, shows nothing."""

    def progress(self, before: Tensor, losses: Tensor) -> Tensor:
        return 1.0 + (before - losses)


@frozen
class Overshoots(Progress):
    """Exaggerates progress: a task whose loss falls fast is weighted below zero, from the second step on."""

    def progress(self, before: Tensor, losses: Tensor) -> Tensor:
        return 3.0 * losses / before - 2.0


@frozen
class WarmsUp(Mean):
    """Is itself in the first two steps, and favours the first task from then on: nothing but view.step tells it."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view)
        weights[0] *= 1.0 + float(view.step >= 2)
        return weights


@frozen
class ShiftedMemory(Remembering):
    """Reads its memory one place off: with nothing remembered, in the first step, it does not show."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        return super().aggregate(view, {**state, "total": state["total"].roll(1)})


@frozen
class PositionAmongThePresent(Remembering):
    """Takes the position among the tasks present for that among all tasks: with everybody there it does not show."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        total, count = state["total"].clone(), state["count"] + 1
        total[: view.n_tasks] += positive(view).log()
        weights = torch.softmax(-total[: view.n_tasks] / count, 0)
        return Aggregation(weights=weights, state={"total": total, "count": count})


@frozen
class UnitForNewcomers(Progress):
    """Takes 1 for what the loss of a task was before it appeared, unless all appear at once."""

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        before = state["before"]
        if bool(before.any()):
            before = torch.where(before > 0, before, 1.0)
        return super().aggregate(view, {"before": before})


@frozen
class AdjacentOffByOne(Balanced):
    """s_i - s_(i+1) instead of s_i - s_(i-1)."""

    def pull(self, v: Tensor) -> Tensor:
        return super().pull(v).roll(-1)


@frozen
class SortedDraws(Shuffled):
    """Random weights, the largest first: random, but not for everybody alike."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view).sort(descending=True).values


@frozen
class FirstComeFirstServed(Twin):
    """Projects each gradient off the others in random order, but always off the first task last, which thus has the
    last word."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        coefficients = torch.diag(norms)
        for i in range(view.n_tasks):
            order = torch.rand(view.n_tasks, generator=view.generator).argsort().tolist()
            for j in [*(j for j in order if j not in (0, i)), *([0] if i else [])]:
                overlap = (coefficients[i] @ units) @ units[j]
                if overlap < 0:
                    coefficients[i, j] -= overlap
        return per_norm(coefficients.sum(0), norms)


@frozen
class HalfTheMean(Mean):
    """Half a step."""

    def weigh(self, view: StepView) -> Tensor:
        return 0.5 * super().weigh(view)


@frozen
class Stalls(Mean):
    """Removes from every gradient its part in the span of all others, conflict or not: dependent gradients vanish."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        inverse = torch.linalg.pinv(units @ units.T, hermitian=True, rtol=1e-12)
        rank = torch.linalg.matrix_rank(units, rtol=1e-7)
        if rank < len(units):
            return torch.zeros_like(norms)
        return per_norm(norms @ (inverse / inverse.diagonal()[:, None]), norms)


@frozen
class BesidesTheCone(Mean):
    """Overcorrects: takes a hundredth of the first gradient away."""

    def weigh(self, view: StepView) -> Tensor:
        weights = super().weigh(view) * 0.01
        weights[0] -= 0.02 * float(view.n_tasks > 1)
        return weights


@frozen
class SumsToK(MinNorm):
    """Forgets to divide by K."""

    def weigh(self, view: StepView) -> Tensor:
        return super().weigh(view) * (1.0 + float(view.n_tasks > 1))


KILLED_BY: dict[type, tuple[str, ...]] = {
    AbsoluteEpsilon: ("positively-homogeneous", "non-conflicting", "matches-reference"),
    EpsilonInDenominator: ("positively-homogeneous", "scale-free"),
    DroppedProjection: ("non-conflicting", "permutation-equivariant", "strongly-stationary-zero", "matches-reference"),
    SlightlyConflicting: ("non-conflicting", "strongly-stationary-zero", "matches-reference"),
    WrongSign: ("non-conflicting", "descent-lower-bound", "conic-combination", "simplex-weights"),
    EarlyStopped: ("matches-reference", "descent-lower-bound", "pareto-stationary-zero"),
    NearlyThere: ("pareto-stationary-zero", "strongly-stationary-zero", "descent-lower-bound", "matches-reference"),
    HalfPrecision: ("simplex-weights", "matches-reference"),
    HalfPrecisionCone: ("non-conflicting", "matches-reference"),
    HiddenState: ("deterministic",),
    StaleAttribute: ("pure", "deterministic", "resume-equivalent"),
    GlobalGenerator: ("pure", "deterministic", "resume-equivalent"),
    GlobalNumpyGenerator: ("pure", "deterministic"),
    WritesIntoRows: ("pure",),
    WritesIntoState: ("pure",),
    WritesIntoStateLater: ("pure",),
    ObservesInPlace: ("pure",),
    KeptFromTheFirst: ("deterministic",),
    KnowsRowsByTheirAddress: ("deterministic",),
    EverySecond: ("deterministic",),
    GlobalGeneratorLater: ("pure", "deterministic", "resume-equivalent"),
    NotANumberLater: ("finite",),
    OtherDtypeLater: ("shape-dtype-device",),
    GraphInState: ("shape-dtype-device",),
    ObservesMore: ("shape-dtype-device",),
    TiredLater: ("permutation-equivariant", "simplex-weights"),
    FirstOfEquals: ("permutation-equivariant",),
    RoomForSix: ("non-conflicting", "permutation-equivariant", "matches-reference"),
    OrderDependent: ("permutation-equivariant",),
    CoordinateWise: ("parameter-rotation",),
    NotANumber: ("finite",),
    WrongShape: ("shape-dtype-device",),
    WrongDtype: ("shape-dtype-device",),
    WrongDevice: ("shape-dtype-device",),
    GrowingState: ("shape-dtype-device",),
    OffByOne: ("no-conflict-identity", "matches-reference"),
    CountsTwice: ("duplicate-task",),
    CountsTwiceLater: ("duplicate-task",),
    GrowsAUnit: ("positively-homogeneous", "linear-under-scaling"),
    RemembersTheSizes: ("positively-homogeneous", "scale-free"),
    FavouriteTask: ("equal-projections", "permutation-equivariant"),
    AbsentIsZero: ("absent-task",),
    AbsentAnyway: ("absent-task",),
    MissesTheAbsent: ("absent-task",),
    Clipped: ("linear-under-scaling",),
    EpsilonInLoss: ("loss-unit-invariant", "coefficient-identity"),
    LooksAtGradients: ("one-backward-pass",),
    AbsoluteProgress: ("loss-unit-invariant",),
    Overshoots: ("conic-combination",),
    WarmsUp: ("permutation-equivariant", "simplex-weights", "no-conflict-identity", "matches-reference"),
    ShiftedMemory: ("permutation-equivariant",),
    PositionAmongThePresent: ("permutation-equivariant",),
    UnitForNewcomers: ("loss-unit-invariant",),
    AdjacentOffByOne: ("coefficient-identity",),
    SortedDraws: ("equivariant-in-distribution",),
    FirstComeFirstServed: ("equivariant-in-distribution",),
    HalfTheMean: ("no-worse-than-mean", "no-conflict-identity", "simplex-weights"),
    Stalls: ("zero-only-if-stationary", "no-conflict-identity"),
    BesidesTheCone: ("conic-combination", "non-conflicting"),
    SumsToK: ("simplex-weights", "matches-reference"),
}
