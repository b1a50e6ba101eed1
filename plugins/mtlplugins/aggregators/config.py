"""ConFIG: the direction with the same cosine to every task's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, integer, vector
from mtlplugins.aggregators import _numpy
from mtlplugins.one_task import chosen, place
from mtlplugins.per_task import check_length, preferences_present
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Cosines
from mtlplugins.solvers.least_squares import minimum_norm

State = dict[str, torch.Tensor]
LENGTHS = ("projection", "minimum", "maximum", "harmonic", "arithmetic", "geometric", "task")


@dataclass(frozen=True)
class ConFIG(Aggregator):
    """Liu et al. 2024 [official code]: with U the unit rows, x = U^+ w, w = 1, u = x / |x|, d = (sum_i <g_i, u>) u.

    In Gramian form, with C the cosines, x = U^T y, y = C^+ w. Proved: u does not depend on positive scaling of the
    rows. If the rows are linearly independent, cos(d, g_i) is proportional to w_i (because U x = w), so there is no
    conflict. With the "projection" length d is linear under positive scaling of the rows, and |d| <= sum |g_i|. If the
    rows are dependent, U x = w holds only in the least-squares sense and a conflict is possible; therefore
    non-conflict is not claimed. Opposite gradients give d = 0. A zero gradient is left out, also of the lengths below
    [choice; in the authors' code it makes "minimum" NaN].
    Cost: the Gramian and one eigendecomposition.

    Args:
        preferences: w, one number >= 0 per task, of which only the ratios matter; None: equal, the authors' only weight
            model. d is orthogonal to the gradient of a task with preference 0.
        length: the length of d. "projection", the authors' default: sum_i |g_i| cos(g_i, u). All others:
            s sum_i cos(g_i, u), where s is the "minimum", the "maximum", or the "harmonic", "arithmetic" or "geometric"
            mean of the |g_i|, or with "task" the |g_i| of one task [official code]; where that task is absent, the
            arithmetic mean [choice].
        tracked: position of that task among all tasks, when the run begins.

    Raises:
        ConfigurationError: the preferences of the tasks present are all zero, or there is not one per task; or there is
            no task of that position, or it was removed.
    """

    paper = "https://arxiv.org/abs/2408.11104"
    needs: ClassVar[Needs] = Needs.GRAMIAN

    preferences: tuple[float, ...] | None = vector(None, low=0.0)
    length: str = choice("projection", LENGTHS)
    tracked: int = integer(0, low=0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; preferences belong to tasks in their order, and not every length is linear."""
        out = {"positively-homogeneous", "resume-equivalent", "parameter-rotation", "preferences-belong-to-tasks"}
        if self.length in ("projection", "arithmetic", "task"):
            out.add("linear-under-scaling")
        if self.preferences is None:
            out.add("equal-projections")
            if self.length != "task":
                out.add("permutation-equivariant")
            if self.length == "projection":
                out.add("matches-reference")
        return frozenset(out)

    def init(self, n_tasks: int) -> State:
        """None but which task is tracked, with the length of one task."""
        check_length("config", "preferences", self.preferences, n_tasks)
        return chosen("config", "tracked", self.tracked, n_tasks) if self.length == "task" else {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """The weights of :func:`combination`."""
        share = np.array(preferences_present("config", self.preferences, view))
        at = place("config", "tracked", state, view) if self.length == "task" else None
        weights, diagnostics = combination(_numpy.read(view), share, self.length, at)
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)


def combination(rows: Cosines, share: Array, length: str, tracked: int | None) -> tuple[Array, dict[str, object]]:
    """Weights (K,) of d for preferences ``share`` (K,), and diagnostics. ``tracked``: the row whose length counts for
    "task", None if it is not there.

    The weights are (sum_i |g_i| (C y)_i / y'Cy) y / |g| with y = C^+ w; other lengths replace every |g_i| in the sum by
    one number."""
    w = rows.gather(share)
    if not len(rows.norms) or not w.any():
        return np.zeros(rows.n_tasks), {}
    y, rank = minimum_norm(rows.matrix, w / w.max())
    cosines = rows.matrix @ y
    square = float(y @ cosines)
    diagnostics: dict[str, object] = {"rank": rank}
    if square <= 16.0 * len(y) * EPS * float(np.abs(y).sum()) ** 2:
        diagnostics["undefined"] = "no direction has a positive cosine with the gradients"
        return np.zeros(rows.n_tasks), diagnostics
    size = float(_lengths(rows, length, tracked) @ cosines)
    # d points against u where the projections sum to less than zero, which dependent rows allow.
    diagnostics["min_cosine"] = float((cosines if size >= 0.0 else -cosines).min()) / square**0.5
    return rows.scatter((size / square) * y / rows.norms), diagnostics


def _lengths(rows: Cosines, length: str, tracked: int | None) -> Array:
    """(k,) the numbers that stand for |g_i| in the length."""
    norms = rows.norms
    if length == "projection":
        return norms
    if length == "task" and tracked is not None:
        return np.full_like(norms, rows.scatter(norms)[tracked])
    one = {
        "minimum": norms.min(),
        "maximum": norms.max(),
        "harmonic": norms.min() * len(norms) / (norms.min() / norms).sum(),
        "arithmetic": norms.mean(),
        "task": norms.mean(),
        # Through logarithms: a product of 40 norms of 1e-12 would underflow.
        "geometric": np.exp(np.log(norms).mean()),
    }[length]
    return np.full_like(norms, one)
