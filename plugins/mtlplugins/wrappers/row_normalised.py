"""``row-normalised``: any method, on task gradients of unit length."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mtlcore import Aggregation, Needs, StepView, choice
from mtlcore.contracts import State
from mtlplugins.wrapping import Wrapper, finite, scaled


@dataclasses.dataclass(frozen=True)
class RowNormalised(Wrapper):
    """The method sees g_i / |g_i|; its direction is multiplied by a common length. [choice]

    Proved: a direction that does not conflict with the unit gradients does not conflict with the gradients. The
    direction of d does not change when a task's loss is measured in another unit. Note that a task that has nearly
    converged then pulls as strongly as the others. Kept: no conflict, the cone, symmetry, stationarity. Dropped:
    promises that depend on the lengths of the rows (the simplex, linearity, the min-norm bound). Zero gradients stay
    zero.

    Args:
        method: any aggregator.
        length: factor of d: the "mean", "min" or "max" of the |g_i|; or "unit", the factor 1, with which d does not
            become shorter when the gradients do.
    """

    paper: ClassVar[str] = ""
    least = Needs.GRAMIAN
    keeps = frozenset(
        {
            "non-conflicting",
            "conic-combination",
            "permutation-equivariant",
            "equivariant-in-distribution",
            "equal-projections",
            "parameter-rotation",
            "strongly-stationary-zero",
            "zero-only-if-stationary",
        }
    )

    length: str = choice("mean", ("mean", "min", "max", "unit"))

    @property
    def adds(self) -> frozenset[str]:  # type: ignore[override]
        """The answer depends on unit rows only, so it is the same for all positive scales of the rows."""
        out = {"resume-equivalent"}
        if "parameter-rotation" in self.wrapped.claims and self.wrapped.needs > Needs.LOSSES:
            out.add("positively-homogeneous")
            if "equivariant-in-distribution" not in self.wrapped.claims:
                out.add("scale-free")
        return frozenset(out)

    @property
    def degree(self) -> float:  # type: ignore[override]
        """0 for d of a fixed length, else 1."""
        return 0.0 if self.length == "unit" else 1.0

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The method's weights divided by the lengths of the rows."""
        norms = view.gramian.diagonal().clamp_min(0.0).sqrt()
        # An absent task's entries are NaN, and not among the lengths.
        alive = norms[norms > 0.0]
        size = 1.0
        if self.length != "unit" and len(alive):
            size = float({"mean": alive.mean(), "min": alive.min(), "max": alive.max()}[self.length])
        inverse = finite(1.0 / norms)
        answer, new = self.asked(scaled(view, inverse, self.wrapped.needs), state)
        heads = self.heads(answer)
        if answer.weights is not None:
            answer = dataclasses.replace(answer, weights=answer.weights.cpu().double() * inverse * size)
        else:
            assert answer.direction is not None
            answer = dataclasses.replace(answer, direction=(answer.direction * size))
        return dataclasses.replace(answer, state=new, head_weights=heads)
