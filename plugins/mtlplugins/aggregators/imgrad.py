"""``imgrad``: CAGrad whose two terms are weighted by the cosine of mean gradient and min-norm direction."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from mtlcore import choice, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.cagrad import cagrad
from mtlplugins.solvers.cosines import Array
from mtlplugins.solvers.min_norm import min_norm


@dataclasses.dataclass(frozen=True)
class IMGrad(Aggregator):
    """Zhou et al. 2025 (2503.08006) [official code; paper: abstract]: with g_0 the mean, g_m the min-norm point of the
    hull and q = cos(g_0, g_m),

        w = argmin over the simplex of (1.5 - q) <g_w, g_0> + q c |g_0| |g_w| ,     d = g_0 + c |g_0| g_w / |g_w| .

    A small q means that some task dominates the mean; then the first term, the gain under the mean, has more weight.
    The problem for w is CAGrad's with c replaced by c q / (1.5 - q), and is solved exactly, too. (The code uses SLSQP,
    and a bounded line search for two tasks; a bracket is missing in its formula for two tasks, which is not copied.)
    d is divided by 1 + c^2, as in the code.

    Proved: q >= 0, because <g_0, g_m> >= |g_m|^2; weights are >= 0. Not promised: no conflict, for any c, because w is
    not the minimiser for the c that is used in d. If the hull contains 0, q is not defined: q = 0 is taken, and d is
    g_0, divided as above. A zero gradient is no part of the hull, but counts in the mean [choice, as in ``cagrad``].
    Cost: the Gramian, then a few K x K systems.

    Args:
        c: 0.8 on NYUv2 [official script].
        rescale: "1+c^2" [official code], "1+c" or "none".
        level: the 1.5 of the formula, larger than 1 [official code].
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.08006"
    claims = frozenset(
        {
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "matches-reference",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    c: float = number(0.8, low=0.0)
    rescale: str = choice("1+c^2", ("none", "1+c^2", "1+c"))
    level: float = number(1.5, low=1.0, open_low=True)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """1 / K + (c / c') y / |g|."""
        rows = _numpy.read(view)
        uniform = 1.0 / view.n_tasks
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, uniform)), state=state)
        mean = rows.norms * uniform
        q = _balance(rows.matrix, rows.norms, mean)
        within = self.c * q / (self.level - q)
        b = mean
        notes: dict[str, object] = {"balance": q}
        if within > 0.0:
            y, certificate = cagrad(rows.matrix, 1.0 / rows.norms, mean, within)
            b, notes = mean + (self.c / within) * y, {**notes, **certificate.diagnostics()}
        by = {"none": 1.0, "1+c^2": 1.0 + self.c**2, "1+c": 1.0 + self.c}[self.rescale]
        weights = rows.scatter(b / rows.norms, dead=uniform) / by
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=notes)


def _balance(matrix: Array, norms: Array, mean: Array) -> float:
    """cos(g_0, g_m), 0 where g_m or g_0 is zero to within rounding."""
    b, square, certificate = min_norm(matrix, 1.0 / norms)
    length: float = float(mean @ matrix @ mean)
    if certificate.status == "stationary" or square <= 0.0 or length <= 0.0:
        return 0.0
    cosine: float = float(mean @ matrix @ b) / (math.sqrt(square) * math.sqrt(length))
    return min(max(cosine, 0.0), 1.0)
