"""Correct plugins, small and independent of the built-in ones. Each keeps the laws listed for it, on every seed."""

# ruff: noqa: D102  (the docstring of a class says what its one method does)

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Conflict, ConflictDetector, Needs, StepView
from mtlcore.errors import LossError
from mtlverify.mutants.explorers import LAWS as EXPLORER_LAWS
from mtlverify.mutants.explorers import Chain
from mtlverify.mutants.mergers import LAWS as MERGER_LAWS
from mtlverify.mutants.mergers import Average
from mtlverify.mutants.teleports import LAWS as RESCALING_LAWS
from mtlverify.mutants.teleports import Chosen, Rescaling

State = dict[str, Tensor]


def unit_rows(view: StepView) -> tuple[Tensor, Tensor]:
    """(K, P) float64 rows of length 1 (zero rows stay zero) and their (K,) norms."""
    rows = view.jacobian.double()
    norms = rows.norm(dim=1)
    return rows / torch.where(norms > 0, norms, 1.0)[:, None], norms


def positive(view: StepView) -> Tensor:
    """(K,) losses, all > 0.

    Raises:
        LossError: some are not.
    """
    if bool((view.losses <= 0).any()):
        raise LossError("this method takes logarithms or quotients of losses: all must be positive.")
    return view.losses


def per_norm(weights: Tensor, norms: Tensor) -> Tensor:
    """Weights of unit rows -> weights of the rows; a zero row gets 0."""
    return torch.where(norms > 0, weights / torch.where(norms > 0, norms, 1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class Twin(Aggregator):
    """Base of the small methods here: weights are computed by one function that a mutant replaces."""

    needs = Needs.JACOBIAN

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The weights, and the state as it came."""
        return Aggregation(weights=self.weigh(view), state=dict(state))

    def weigh(self, view: StepView) -> Tensor:
        """(K,) float64."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Mean(Twin):
    """(1/K) sum g_i."""

    reference: ClassVar[str] = "ls"

    def weigh(self, view: StepView) -> Tensor:
        return torch.full((view.n_tasks,), 1.0 / view.n_tasks, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class MinNorm(Twin):
    """The minimum-norm point of the hull, by Lawson-Hanson (see references.min_norm for why that is the same)."""

    reference: ClassVar[str] = "mgda"

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        if bool((norms == 0).any()):
            return (norms == 0).double() / float((norms == 0).sum())
        cost = (norms.min() / norms).numpy()
        system = np.vstack([units.numpy().T, cost])
        b, _ = nnls(system, np.append(np.zeros(len(system) - 1), 1.0), maxiter=1000)
        a = torch.from_numpy(b) / norms
        return a / a.sum()


@dataclasses.dataclass(frozen=True)
class ConeMean(Twin):
    """The mean of the gradients projected onto the dual cone, each by Lawson-Hanson."""

    reference: ClassVar[str] = "upgrad"

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        b = torch.stack([self.project(units, i) for i in range(view.n_tasks)])
        return per_norm(norms @ b / view.n_tasks, norms)

    def project(self, units: Tensor, i: int) -> Tensor:
        """Weights of the projection of unit row i."""
        y, _ = nnls(units.numpy().T, -units[i].numpy(), maxiter=1000)
        return torch.from_numpy(y) + torch.eye(len(units), dtype=torch.float64)[i]


@dataclasses.dataclass(frozen=True)
class ConeBlend(ConeMean):
    """The projected gradients, each as often as its task is preferred."""

    preferences: tuple[float, ...] | None = None

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        b = torch.stack([self.project(units, i) for i in range(view.n_tasks)])
        return per_norm((self.shares(view, norms) * norms) @ b, norms)

    def shares(self, view: StepView, norms: Tensor) -> Tensor:
        """(K,) with sum 1: the part that a mutant spoils."""
        return self.part(self.chosen(view))

    def chosen(self, view: StepView) -> Sequence[float]:
        """Those of the tasks in the view."""
        return [1.0] * view.n_tasks if self.preferences is None else [self.preferences[i] for i in view.task_index]

    def part(self, chosen: Sequence[float]) -> Tensor:
        """With sum 1."""
        wish = torch.tensor(chosen, dtype=torch.float64)
        return wish / wish.sum()


@dataclasses.dataclass(frozen=True)
class Bargain(Twin):
    """Nash bargaining for unit rows: G w = 1 / w minimises w G w / 2 - sum log w. The function is self-concordant, so
    Newton's method with steps of 1 / (1 + its decrement) converges from everywhere."""

    degree: ClassVar[float] = 0.0
    reference: ClassVar[str] = "nash-mtl"

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        gram, b = units @ units.T, torch.ones(len(norms), dtype=torch.float64)
        eye, best, least = torch.eye(len(norms), dtype=torch.float64), b, math.inf
        for _ in range(200):
            slope = b * (gram @ b) - 1.0
            if float(slope.abs().max()) < least:
                best, least = b, float(slope.abs().max())
            if least < 1e-13:
                break
            hessian = b[:, None] * gram * b[None, :] + eye
            move = torch.linalg.lstsq(hessian, -slope[:, None], driver="gelsd").solution[:, 0]
            decrement = float((-slope @ move).clamp_min(0.0).sqrt())
            b = (b * (1.0 + move / (1.0 + decrement))).clamp(1e-13, 1e13)  # no solution: somewhere
        return per_norm(best, norms)


@dataclasses.dataclass(frozen=True)
class UnitSum(Twin):
    """sum g_i / |g_i|: free of scale."""

    degree: ClassVar[float] = 0.0

    def weigh(self, view: StepView) -> Tensor:
        _, norms = unit_rows(view)
        return per_norm(torch.ones_like(norms), norms)


@dataclasses.dataclass(frozen=True)
class EqualAngles(Twin):
    """The least-squares solution of <u_i, x> = 1, as long as the gradients' projections on it."""

    def weigh(self, view: StepView) -> Tensor:
        units, norms = unit_rows(view)
        y = torch.linalg.pinv(units @ units.T, hermitian=True, rtol=1e-12) @ torch.ones(len(units), dtype=torch.float64)
        x = units.T @ y
        length = x.norm()
        if bool(length <= 1e-6 * y.norm()):
            return torch.zeros_like(norms)
        return per_norm(y * (norms @ (units @ x)) / length**2, norms)


@dataclasses.dataclass(frozen=True)
class InverseLoss(Twin):
    """sum g_i / L_i: the gradient of sum log L_i."""

    needs = Needs.LOSSES
    reference: ClassVar[str] = "si"

    def weigh(self, view: StepView) -> Tensor:
        return 1.0 / self.checked(view)

    def checked(self, view: StepView) -> Tensor:
        """(K,) losses, none of which is zero or negative."""
        return positive(view)


@dataclasses.dataclass(frozen=True)
class Remembering(Twin):
    """The mean, with weights that drift with the losses seen so far; all memory is in the state."""

    def init(self, n_tasks: int) -> State:
        """Running mean of the logarithms of the losses, and how many there were."""
        return {"total": torch.zeros(n_tasks, dtype=torch.float64), "count": torch.zeros((), dtype=torch.int64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here = list(view.task_index)
        total, count = state["total"].clone(), state["count"] + 1
        total[here] += positive(view).log()
        return Aggregation(weights=torch.softmax(-total[here] / count, 0), state={"total": total, "count": count})


@dataclasses.dataclass(frozen=True)
class Progress(Twin):
    """Weights 1 / L_i, times how much of the loss of the step before is left: free of every task's unit."""

    needs = Needs.LOSSES

    def init(self, n_tasks: int) -> State:
        """The losses of the step before; 0: there was none."""
        return {"before": torch.zeros(n_tasks, dtype=torch.float64)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        here = list(view.task_index)
        before, losses = state["before"].clone(), positive(view)
        known = torch.where(before[here] > 0, before[here], losses)
        before[here] = losses
        return Aggregation(weights=self.progress(known, losses) / losses, state={"before": before})

    def progress(self, before: Tensor, losses: Tensor) -> Tensor:
        """(K,), 1 in the first step."""
        return losses / before


@dataclasses.dataclass(frozen=True)
class Balanced(Twin):
    """The derivative of sum_i sigma_i L_i + lambda sum_i |sigma_i L_i - sigma_(i+1) L_(i+1)| for a router that rests:
    bilb4mtl with these hyper-parameters."""

    needs = Needs.LOSSES
    reference: ClassVar[str] = "bilb4mtl"
    normalisation = "identical"
    tau = "sigma"
    divide_by = "one"
    discrepancy = "adjacent"
    lamb = 0.05
    router = "free"
    squash = "sigmoid"
    clamp_low = clamp_high = None
    init_low = init_high = 1.0
    router_optimizer = "sgd"
    router_lr = 0.0
    pareto_safe = False

    def weigh(self, view: StepView) -> Tensor:
        sigma = torch.sigmoid(torch.tensor(self.init_low, dtype=torch.float64))
        return sigma + self.lamb * sigma * self.pull(sigma * view.losses)

    def pull(self, v: Tensor) -> Tensor:
        """(K,) s_i - s_(i-1), with s_i = sign(v_i - v_(i+1)) and s_0 = s_K = 0."""
        signs = torch.zeros(len(v) + 1, dtype=v.dtype)
        signs[1:-1] = (v[:-1] - v[1:]).sign()
        return signs[1:] - signs[:-1]


@dataclasses.dataclass(frozen=True)
class Shuffled(Twin):
    """Random weights, all from the view's generator."""

    def weigh(self, view: StepView) -> Tensor:
        return torch.rand(view.n_tasks, generator=view.generator, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class WeakConflict(ConflictDetector):
    """Some <g_i, g_j> < 0, beyond the rounding of the Gramian."""

    reference: ClassVar[str] = "cosine"
    threshold: ClassVar[float] = 0.0
    needs = Needs.JACOBIAN

    def detect(self, view: StepView) -> Conflict:
        units, _ = unit_rows(view)
        cos = units @ units.T
        noise = 1e-13
        # The mean harms task i: relative to the largest gradient, as its own rounding is.
        rows = view.jacobian.double() / view.jacobian.double().abs().max().clamp_min(1e-300)
        gains = units @ rows.mean(dim=0)
        return self.answer(cos, cos < -noise, gains < -noise)

    def answer(self, cos: Tensor, pairs: Tensor, dominated: Tensor) -> Conflict:
        """Assembled in one place, so that a mutant may spoil it."""
        return Conflict(bool(pairs.any()), max(0.0, -float(cos.min())), pairs, dominated)


UNIVERSAL = ("finite", "pure", "deterministic", "shape-dtype-device", "resume-equivalent", "absent-task")
SYMMETRIES = ("permutation-equivariant", "parameter-rotation")

TWINS: dict[type, tuple[str, ...]] = {
    Mean: (
        *UNIVERSAL, *SYMMETRIES, "positively-homogeneous", "linear-under-scaling", "conic-combination",
        "simplex-weights", "no-conflict-identity", "no-worse-than-mean", "matches-reference", "matches-exact",
        "continuous", "unbiased-in-batches",
    ),
    MinNorm: (
        *UNIVERSAL, *SYMMETRIES, "positively-homogeneous", "non-conflicting", "descent-lower-bound", "duplicate-task",
        "simplex-weights", "conic-combination", "pareto-stationary-zero", "strongly-stationary-zero",
        "zero-only-if-stationary", "matches-reference", "matches-exact", "per-task-descent", "continuous",
    ),
    ConeMean: (
        *UNIVERSAL, *SYMMETRIES, "positively-homogeneous", "non-conflicting", "linear-under-scaling",
        "no-conflict-identity", "conic-combination", "strongly-stationary-zero", "zero-only-if-stationary",
        "matches-reference", "step-non-conflicting", "step-nearest", "metric-identity", "step-unit-free",
        "step-descent",
    ),
    ConeBlend: (
        *UNIVERSAL, *SYMMETRIES, "positively-homogeneous", "non-conflicting", "linear-under-scaling",
        "preferences-belong-to-tasks", "preferences-weigh-losses",
    ),
    Bargain: ("pure", "deterministic", "shape-dtype-device", "alpha-fair"),
    UnitSum: (*UNIVERSAL, *SYMMETRIES, "positively-homogeneous", "scale-free", "loss-unit-invariant"),
    EqualAngles: (*UNIVERSAL, "positively-homogeneous", "equal-projections"),
    InverseLoss: (
        *UNIVERSAL, *SYMMETRIES, "loss-unit-invariant", "conic-combination", "one-backward-pass",
        "coefficient-identity",
    ),
    Progress: (*UNIVERSAL, *SYMMETRIES, "loss-unit-invariant", "conic-combination", "one-backward-pass"),
    Balanced: (*UNIVERSAL, "parameter-rotation", "conic-combination", "one-backward-pass", "coefficient-identity"),
    Remembering: (*UNIVERSAL, *SYMMETRIES, "simplex-weights"),
    Shuffled: (*UNIVERSAL, "equivariant-in-distribution"),
    WeakConflict: (
        "finite", "pure", "deterministic", "shape-dtype-device", "symmetric", "scale-free", "permutation-equivariant",
        "silent-on-aligned", "matches-reference",
    ),
}  # fmt: skip
"""Class -> the laws it keeps."""


def instances() -> list[tuple[Any, tuple[str, ...]]]:
    """One of each, with its laws."""
    own = [(cls(), laws) for cls, laws in TWINS.items()]
    others = [(Average(), MERGER_LAWS), (Chain(), EXPLORER_LAWS), (Rescaling(), RESCALING_LAWS)]
    return [*own, *others, (Chosen(), ("lowers-conflict",))]
