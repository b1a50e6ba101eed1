"""GradOPS: gradients projected onto the orthogonal complement of the other tasks' span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, flag, number, vector
from mtlplugins.aggregators import _numpy
from mtlplugins.per_task import check_length, weights_present
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Cosines
from mtlplugins.solvers.dual_cone import project_rows
from mtlplugins.solvers.orthogonal import remainders
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class GradOPS(Aggregator):
    """Zhu et al., WSDM 2025 [paper]: neither a modified gradient nor their sum conflicts with an original gradient.

    With S_i = span{g_j, j != i},

        g_i' = g_i - (projection of g_i onto S_i)    for every i in conflict, g_i' = g_i for the others,
        d    = sum_i w_i g_i' .

    It is computed from the K x K Gramian by the dual basis (:mod:`mtlplugins.solvers.orthogonal`), not by K
    Gram-Schmidt processes; the cost is O(K^2 P + K^3). For K = 2 and w = 1 it is PCGrad. The result does not depend on
    the order of the tasks.

    The projection and the guarantee are the paper's. The rest could not be read and is a [choice]: only rows in
    conflict are projected (``project``), the formula of the weights, the fallback.

    **Proved.** (1) <g_i', g_j> >= 0 for all i, j: a projected row has <g_i', g_j> = 0 for j != i and |g_i'|^2
    for j = i; a row that is not projected has no conflict. (2) Hence <d, g_j> >= w_j <g_j', g_j> >= w_j |g_j'|^2 >= 0
    for *any* non-negative weights. In mode "always", <d, g_j> = w_j |g_j'|^2 exactly. (3) Descent:
    for L-smooth losses bounded below, mode "always", 0 <= w_i <= w_max and a step eta <= 1 / (L K^2 w_max),

        sum_j L_j(theta - eta d) <= sum_j L_j(theta) - (eta / 2) sum_j w_j |g_j'|^2 ,

    by |d|^2 <= K sum w_i^2 |g_i'|^2 and (2), so min_t sum_j w_j |g_j'|^2 = O(1/T).

    **The stall.** Linearly dependent gradients are projected to zero, although a common descent direction may exist
    (example: gradients at 5, 100 and 175 degrees in a plane). If no |g_i'| is larger than ``stall`` |g_i|, every g_i'
    is replaced by the projection P g_i of g_i onto the dual cone {x : J x >= 0}. (1) and (2) hold for P g_i, too: it
    lies in the cone, and <P g_j, g_j> = |P g_j|^2. With this fallback and positive weights, d = 0 only at Pareto
    stationary points: d = 0 implies P g_j = 0 for every j, that is, -g_j is in the cone of the rows.
    ``diagnostics["fallback"]`` says when and why it was used, ``diagnostics["fallbacks"]`` how often in this run.

    **Trade-off.** With d_1 = sum_i g_i' and r_i = <d_1, g_i> / |g_i|^2 ("relative") or / |g_i| ("projection"),
    R_i = r_i / mean r, w_i = K R_i^alpha / sum_j R_j^alpha, with R_i >= 1e-6 and w_i >= 1e-3 [memory for the form,
    choice for r_i and the bounds]. alpha > 0 favours the tasks that dominate the update, alpha < 0 the others; a range
    of alpha gives points of a front. Tasks with g_i' = 0 are left out of the mean, of the sum and of K, and keep
    weight 1 [choice].

    **Discontinuities.** d jumps where a conflict begins (K >= 3 and mode "conflict-only", because a row is then
    projected off the span of all others), at the bound ``stall``, and where |g_i'| / |g_i| falls below 1e-6, which the
    Gramian does not resolve.

    Args:
        project: "conflict-only", or "always".
        alpha: exponent of the trade-off; 0 gives w = 1.
        contribution: how r_i is measured. With "relative" two conflicting tasks always have r_1 = r_2, the squared
            sine of their angle, and alpha would have no effect for K = 2; therefore the default is "projection"
            [choice].
        weights: further factors >= 0, one per task, by which w is multiplied.
        rescale: scale d to the length of the mean gradient. Non-conflict is kept; d does not become short where
            gradients are nearly dependent.
        fallback: whether the stall is resolved as above; False is the plain method.
        stall: largest |g_i'| / |g_i| (a sine), over tasks with positive weight, that counts as a stall.

    Raises:
        ConfigurationError: ``weights`` does not have one number per task, or only zeros for those present.
    """

    paper = "https://arxiv.org/abs/2503.03438"
    needs: ClassVar[Needs] = Needs.GRAMIAN

    project: str = choice("conflict-only", ("conflict-only", "always"))
    alpha: float = number(0.0, low=-10.0, high=10.0)
    contribution: str = choice("projection", ("projection", "relative"))
    weights: tuple[float, ...] | None = vector(None, low=0.0)
    rescale: bool = flag(False)
    fallback: bool = flag(True)
    stall: float = number(1e-3, low=0.0, high=1.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised for these hyper-parameters."""
        out = {"non-conflicting", "positively-homogeneous", "parameter-rotation", "resume-equivalent"}
        if self.weights is None:
            out |= {"permutation-equivariant", "strongly-stationary-zero"}
            if self.fallback:
                out.add("zero-only-if-stationary")
        if self.alpha == 0.0 and not self.rescale:
            out.add("linear-under-scaling")
            if self.weights is None:
                out.add("matches-reference")
                if self.project == "conflict-only":
                    out.add("no-conflict-identity")
        return frozenset(out)

    def init(self, n_tasks: int) -> State:
        """How many steps of this run needed the fallback; nothing that the direction depends on."""
        check_length("gradops", "weights", self.weights, n_tasks)
        return {"fallbacks": torch.zeros((), dtype=torch.int64, device="cpu")} if self.fallback else {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Project, weight, combine, and check the result for conflicts."""
        rows = _numpy.read(view)
        chosen = rows.gather(self._factors(view))
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.ones(view.n_tasks)), state=state)
        basis, diagnostics = self._projected(rows, chosen)
        w = chosen * self._trade_off(rows, basis)
        plain = w * rows.norms
        b, checked = without_conflict(rows.matrix, plain @ basis, float(plain.sum()))
        if self.rescale:
            b = b * _ratio_to_mean(rows, b)
        diagnostics |= {**checked, "task_weights": _numpy.tensor(rows.scatter(w))}
        if self.fallback:
            count = int(state.get("fallbacks", 0)) + ("fallback" in diagnostics)
            state, diagnostics["fallbacks"] = {"fallbacks": torch.tensor(count, device="cpu")}, count
        weights = rows.scatter(b / rows.norms, dead=1.0)
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)

    def _factors(self, view: StepView) -> Array:
        """The explicit weights of the tasks present."""
        if self.weights is None:
            return np.ones(view.n_tasks)
        return np.array(weights_present("gradops", self.weights, view))

    def _projected(self, rows: Cosines, chosen: Array) -> tuple[Array, dict[str, Any]]:
        """Row i: coefficients of g_i' / |g_i| in the unit rows."""
        c = rows.matrix
        k = len(c)
        # A cosine within rounding of zero is not a conflict: projecting for it would be a jump caused by noise.
        hit = np.asarray((c < -4.0 * EPS * k).any(axis=1))
        if self.project == "always":
            hit = np.ones(k, dtype=bool)
        if not hit.any():
            return np.eye(k), {"projected": 0}
        basis, sines = remainders(c)
        basis = np.where(hit[:, None], basis, np.eye(k))
        longest = float(np.where(hit, sines, 1.0)[chosen > 0.0].max(initial=0.0))
        diagnostics: dict[str, Any] = {"projected": int(hit.sum()), "longest_remainder": longest}
        if self.fallback and longest <= self.stall:
            basis, certificate = project_rows(c)
            reason = f"stall: no remainder exceeds {longest:.1e} of its gradient; projected onto the dual cone"
            diagnostics |= {"fallback": reason, **certificate.diagnostics()}
        return basis, diagnostics

    def _trade_off(self, rows: Cosines, basis: Array) -> Array:
        """w_i = K R_i^alpha / sum_j R_j^alpha."""
        k = len(basis)
        w = np.ones(k)
        if self.alpha == 0.0:
            return w
        r = rows.matrix @ (rows.norms @ basis)
        if self.contribution == "relative":
            r = r / rows.norms
        # g_i' = 0 to within rounding: a weight would move nothing, and for alpha < 0 it would be nearly all there is.
        moves = ((basis @ rows.matrix) * basis).sum(axis=1) > 16.0 * k * EPS * np.abs(basis).sum(axis=1) ** 2
        r, n = np.maximum(r[moves], 0.0), int(moves.sum())
        total = float(r.sum())
        if total > 0.0:
            share = np.maximum(r * (n / total), 1e-6) ** self.alpha
            w[moves] = np.maximum(share * (n / share.sum()), 1e-3)
        return w


def _ratio_to_mean(rows: Cosines, b: Array) -> float:
    """|g_0| / |d|; 1 where d is zero to within rounding."""
    mean = rows.norms / rows.n_tasks
    square, size = float(b @ rows.matrix @ b), float(np.abs(b).sum())
    if square <= 16.0 * len(b) * EPS * size * size:
        return 1.0
    return float((max(float(mean @ rows.matrix @ mean), 0.0) / square) ** 0.5)
