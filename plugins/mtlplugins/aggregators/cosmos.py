"""``cosmos``: a weighted sum of the losses, minus a multiple of the cosine between losses and preference."""

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

    The weights are the derivatives, w_i = r_i - lambda (r_i / n - cos(r, L) L_i / |L|^2) with n = |r| |L|. The second
    term turns the vector of losses towards the ray through r. It is orthogonal to L, because the cosine does not depend
    on the length of L. In the paper r is drawn in every step and is an input of the network. Here a fixed r (the
    default) gives one point of the front; a drawn r (``concentration``) is reported in the diagnostics.

    Weights can be negative if lambda is large compared with |L|: the loss of a task that is far below its share is then
    increased on purpose. Not promised: a conic combination, or descent. Where L = 0 the cosine has no derivative, and
    w = r. Cost: one backward pass.

    Args:
        lamb: lambda; its unit is that of the losses, as a cosine has none.
        preferences: r, one number >= 0 per task; None: equal.
        concentration: p of Dirichlet(p, ..., p), from which r is drawn in every step if no preferences are given.

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
