"""``pbi``: penalised boundary intersection, a scalarisation for the point of the front on a given ray."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import number, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.arrays import losses_of, take
from mtlplugins.per_task import check_length
from mtlplugins.preferences import preference


@dataclasses.dataclass(frozen=True)
class PBI(Aggregator):
    """Zhang and Li 2007 [paper*]: with r^ the unit preference and z the ideal point, x = L - z,

        min  d_1 + theta d_2,   d_1 = r^'x  (length along the ray),   d_2 = |x - d_1 r^|  (distance from the ray).

    The weights are the derivatives, w = r^ + theta (x - d_1 r^) / d_2. On the ray itself (d_2 = 0 to within rounding)
    w = r^, the subgradient of least norm. theta -> 0 gives linear scalarisation; with a large theta the step first
    brings the losses into the ratio r and then decreases them. The weight of a task whose loss is far below its share
    is negative: the step increases that loss on purpose. w does not change when all losses (and z) are measured in
    another common unit. Not promised: a conic combination. Cost: one backward pass.

    Args:
        theta: the penalty; 5 is the paper's value [paper*].
        preferences: r, one number >= 0 per task; None: equal.
        concentration: p of Dirichlet(p, ..., p), from which r is drawn in every step if no preferences are given.
        ideal: z, one number per task; None: zero.

    Raises:
        ConfigurationError: preferences or ideal do not have one number per task.
    """

    needs = Needs.LOSSES
    paper: ClassVar[str] = "https://doi.org/10.1109/TEVC.2007.892759"

    theta: float = number(5.0, low=0.0)
    preferences: tuple[float, ...] | None = vector(None, low=0.0)
    concentration: float | None = number(None, low=0.0, open_low=True)
    ideal: tuple[float, ...] | None = vector(None)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """Equal preferences treat tasks alike; without the penalty the weights are r^."""
        out = {"resume-equivalent", "one-backward-pass"}
        if self.preferences is not None or self.concentration is None:
            out.add("coefficient-identity")
        if self.concentration is None and self.ideal is None:
            out.add("preferences-belong-to-tasks")
        if self.preferences is None and self.concentration is None and self.ideal is None:
            out.add("permutation-equivariant")
        return frozenset(out | ({"conic-combination"} if self.theta == 0.0 else set()))

    def init(self, n_tasks: int) -> State:
        """No state."""
        for name in ("preferences", "ideal"):
            check_length("pbi", name, getattr(self, name), n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Derivatives (K,) of the scalarisation."""
        x = losses_of(view)
        if self.ideal is not None:
            x = x - take(np.array(self.ideal), view)
        r = preference(self.preferences, self.concentration, view)
        ray, size = r / float(np.linalg.norm(r)), float(np.abs(x).max())
        weights, off = ray, 0.0
        if size > 0.0:
            unit = x / size
            aside = unit - float(ray @ unit) * ray
            off = float(np.linalg.norm(aside))
            if off > 4.0 * len(x) * np.finfo(float).eps:
                weights = ray + self.theta * aside / off
        notes = {"preference": torch.from_numpy(r), "along": float(ray @ x), "aside": off * size}
        return Aggregation(weights=torch.from_numpy(weights), state=state, diagnostics=notes)
