"""``epo``: exact Pareto-optimal search on the ray of a preference (Mahapatra and Rajan 2020)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView, number
from mtlcore.contracts import State
from mtlcore.errors import LossError
from mtlplugins.explorers.sweep import Sweep
from mtlplugins.solvers.cosines import Array


@dataclasses.dataclass(frozen=True)
class ExactRay(Aggregator):
    """Weights that first bring the losses to r_1 L_1 = ... = r_K L_K, and then decrease them along that ray.

    With l^ = r L / sum(r L), mu = sum l^ log(K l^) (the distance from uniform), a_i = r_i (log(K l^_i) - mu) and
    C = J J':

    - balance, if mu > eps: maximise b'C a over the simplex, under two constraints: the largest r_i L_i does not
      increase, and a loss that increases along the anchor direction a increases no faster than along a;
    - descend, if mu <= eps: maximise sum C b over the simplex, with C b >= 0.

    Both are linear programs in K unknowns [official code]. In the code the descent has one more constraint, which can
    be relaxed: it may not go against the anchor direction. Here it is relaxed.

    Observed: for a preference near a corner the anchor direction is short. A loss that has to increase then increases
    slowly, and the search is slow.

    Args:
        preferences: r, positive.
        eps: largest mu at which the ray counts as reached; 1e-4 [official code].

    Raises:
        LossError: a negative loss; rays are defined for positive losses.
    """

    needs = Needs.GRAMIAN

    preferences: tuple[float, ...] = ()
    eps: float = 1e-4

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) on the simplex, times K; the heads get them too [official code]."""
        losses, r = np.array(view.loss_values), np.array(self.preferences)
        for name, value in zip(view.task_names, losses.tolist(), strict=True):
            if value < 0.0:
                raise LossError(f"epo follows a ray of positive losses, but the loss of task {name!r} is {value:g}.")
        gramian = view.gramian.double().numpy()
        size = float(np.trace(gramian))
        weights, phase = np.full(len(r), 1.0 / len(r)), "stationary"
        if size > 0.0 and float(losses.sum()) > 0.0:
            weights, phase = self._solve(gramian / size, r * losses, r)
        found = torch.from_numpy(weights * len(r))
        return Aggregation(found, None, state, {"phase": phase}, found)

    def _solve(self, c: Array, scaled: Array, r: Array) -> tuple[Array, str]:
        k = len(r)
        share = scaled / scaled.sum()
        logs = np.log(np.maximum(share * k, 1e-300))
        mu = float((share * logs).sum())
        if mu <= self.eps:
            return _program(-c.sum(0), c, np.zeros(k)), "descend"
        anchor = r * (logs - mu)
        pull = c @ anchor
        least = np.zeros(k)
        if (pull > 0.0).any():
            least = np.where(pull > 0.0, -np.inf, pull)
            least[scaled == scaled.max()] = 0.0
        return _program(-pull, c, least), "balance"


@dataclasses.dataclass(frozen=True)
class Rays(Aggregator):
    """:class:`ExactRay` with another ray in every step.

    Args:
        preferences: (steps, K), positive, as rows of plain numbers.
        eps: as in :class:`ExactRay`.
    """

    needs = Needs.GRAMIAN

    preferences: tuple[tuple[float, ...], ...] = ()
    eps: float = 1e-4

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The answer for the ray of this step."""
        return ExactRay(self.preferences[view.step], self.eps).aggregate(view, state)


def positive(preference: Tensor, floor: float) -> tuple[float, ...]:
    """A preference (K,) as a ray: entries below ``floor`` are raised to it, and the result is normalised to sum 1."""
    raised = preference.clamp_min(floor)
    return tuple((raised / raised.sum()).tolist())


def _program(cost: Array, c: Array, least: Array) -> Array:
    """min cost'b over the simplex with C b >= least. If there is no such b because of rounding: equal weights."""
    held = np.isfinite(least)
    found = linprog(
        cost, A_ub=-c[held] if held.any() else None, b_ub=-least[held] if held.any() else None,
        A_eq=np.ones((1, len(c))), b_eq=np.ones(1), bounds=(0.0, 1.0), method="highs",
    )  # fmt: skip
    out: Array = np.full(len(c), 1.0 / len(c)) if not found.success else np.maximum(found.x, 0.0)
    out /= out.sum()
    return out


@dataclasses.dataclass(frozen=True)
class EPO(Sweep):
    """One model per preference r, each on the ray r_1 L_1 = ... = r_K L_K: twice the preference means half the loss.

    Known: it finds the Pareto-optimal point at which the ray meets the front, also on a front that is not convex; if
    the ray does not meet the front, it finds a point near the end of the front [paper*]. A preference of zero has no
    ray; it is raised to ``floor``. [choice]

    Args:
        points: number of models; at least one per task.
        floor: smallest preference of a task.
        eps: as in :class:`ExactRay`.
    """

    paper = "https://proceedings.mlr.press/v119/mahapatra20a.html"

    claims: ClassVar[frozenset[str]] = frozenset()

    floor: float = number(1e-3, low=0.0, high=0.5, open_low=True)
    eps: float = number(1e-4, low=0.0, open_low=True, log=True)

    def method(self, preferences: Tensor, index: int, steps: int) -> Aggregator:
        """The aggregator of one ray."""
        return ExactRay(positive(preferences[index], self.floor), self.eps)
