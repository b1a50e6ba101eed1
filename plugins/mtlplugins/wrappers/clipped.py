"""``clipped``: any method, with an upper bound on the length of its direction or of the gradients that it gets."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch

from mtlcore import Aggregation, Needs, StepView, choice, number
from mtlcore.contracts import State
from mtlplugins.wrapping import Wrapper, finite, scaled


@dataclasses.dataclass(frozen=True)
class Clipped(Wrapper):
    """d <- d min(1, max_norm / |d|) ("direction"), or g_i <- g_i min(1, max_norm / |g_i|) before the method ("rows").

    "direction" is what the code of Nash-MTL and its successors does to the trunk, with max_norm = 1 [official code];
    heads are not clipped. "rows" limits the influence of a single task [choice]. Both multiply by positive numbers, so
    these promises are kept: no conflict, the cone, symmetry and the zeros of d. Promises about the length of d are
    dropped: homogeneity, linearity, the simplex. If the method returns weights, |d| is computed from the Gramian.

    Args:
        method: any aggregator.
        max_norm: the largest length, in the units of the gradients.
        what: "direction" or "rows".
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

    max_norm: float = number(1.0, low=0.0, open_low=True)
    what: str = choice("direction", ("direction", "rows"))

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The method's answer, clipped; or its answer to the clipped gradients."""
        if self.what == "rows":
            return self._rows(view, state)
        answer, new = self.asked(view, state)
        heads = self.heads(answer)
        if answer.weights is not None:
            weights = answer.weights.cpu().double()
            share = self._share(_length(view.gramian, weights))
            answer = dataclasses.replace(answer, weights=weights * share)
        else:
            assert answer.direction is not None
            share = self._share(float(answer.direction.double().norm()))
            answer = dataclasses.replace(answer, direction=answer.direction * share)
        notes = {**answer.diagnostics, "clipped_to": share}
        return dataclasses.replace(answer, state=new, head_weights=heads, diagnostics=notes)

    def _rows(self, view: StepView, state: State) -> Aggregation:
        norms = view.gramian.diagonal().clamp_min(0.0).sqrt()
        factors = finite((self.max_norm / norms).clamp_max(1.0))
        answer, new = self.asked(scaled(view, factors, self.wrapped.needs), state)
        heads, weights = self.heads(answer), answer.weights
        if weights is not None:
            weights = weights.cpu().double() * factors
        return dataclasses.replace(answer, weights=weights, state=new, head_weights=heads)

    def _share(self, length: float) -> float:
        return 1.0 if length <= self.max_norm else self.max_norm / length


def _length(gramian: torch.Tensor, weights: torch.Tensor) -> float:
    """|J'w|, computed with unit rows so that no square overflows. Absent tasks have weight 0, and entries of NaN."""
    live = (weights != 0.0) & (gramian.diagonal() > 0.0)
    norms = gramian.diagonal()[live].sqrt()
    b = weights[live] * norms
    size = float(b.abs().max()) if len(b) else 0.0
    if size == 0.0:
        return 0.0
    unit = gramian[live][:, live] / norms[:, None] / norms[None, :]
    return size * math.sqrt(max(float((b / size) @ unit @ (b / size)), 0.0))
