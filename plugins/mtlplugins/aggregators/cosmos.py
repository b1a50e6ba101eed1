"""``cosmos``: a weighted sum with a reward for losses that are proportional to the preference."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch

from mtlcore import number, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import losses_of
from mtlplugins.per_task import check_length
from mtlplugins.preferences import preference


@dataclasses.dataclass(frozen=True)
class COSMOS(Aggregator):
    """Ruchte and Grabocka 2021 [paper*]: min r'L - lambda cos(r, L), r a preference on the simplex.

    With n = |r| |L| the weights are w_i = r_i - lambda (r_i / n - cos(r, L) L_i / |L|^2). The second term pulls the
    losses towards the ray through r: sum_i L_i (that part) = 0, so it never changes the weighted size r'L to first
    order in L's own direction. In the paper r is drawn in every step and given to the network as an input; here a
    fixed r (the default) makes one point of the front, and a draw (``concentration``) is reported in the diagnostics.

    Weights can be negative where lambda is large beside |L|: a task far above its share is left to rise no longer,
    one far below it is pushed up. Not promised: a conic combination, or descent. Where L = 0 the cosine has no
    derivative: w = r. Cost: one backward pass.

    Args:
        lamb: lambda, in units of loss (the cosine has none).
        preferences: r, one number >= 0 per task; None: equal.
        concentration: p of Dirichlet(p, ..., p) to draw r from in every step, used if no preferences are given.

    Raises:
        ConfigurationError: there is not one preference per task.
    """

    needs = Needs.LOSSES
    paper: ClassVar[str] = "https://arxiv.org/abs/2103.13392"

    lamb: float = number(1.0, low=0.0)
    preferences: tuple[float, ...] | None = vector(None, low=0.0)
    concentration: float | None = number(None, low=0.0, open_low=True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """Equal preferences treat tasks alike; without the cosine the weights are r."""
        out = {"resume-equivalent", "one-backward-pass"}
        if self.preferences is not None or self.concentration is None:
            out.add("coefficient-identity")
        if self.concentration is None:
            out.add("preferences-belong-to-tasks")
        if self.preferences is None and self.concentration is None:
            out.add("permutation-equivariant")
        return frozenset(out | ({"conic-combination", "simplex-weights"} if self.lamb == 0.0 else set()))

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("cosmos", "preferences", self.preferences, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Derivatives (K,) of the scalarisation."""
        losses, r = losses_of(view), preference(self.preferences, self.concentration, view)
        weights, cosine = r, 0.0
        largest = float(np.abs(losses).max())
        if largest > 0.0:
            unit = losses / largest  # its square must not overflow
            length = float(np.linalg.norm(unit))
            ray = r / float(np.linalg.norm(r))
            cosine = float(ray @ unit) / length
            pull = (ray - cosine * unit / length) / length / largest
            weights = r - self.lamb * pull
            if not np.isfinite(weights).all():  # losses below 1e-308 of lambda
                weights = r
        notes = {"preference": torch.from_numpy(r), "angle": math.acos(max(-1.0, min(1.0, cosine)))}
        return Aggregation(weights=torch.from_numpy(weights), state=state, diagnostics=notes)
