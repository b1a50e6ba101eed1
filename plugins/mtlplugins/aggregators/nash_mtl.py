"""Nash-MTL: the Nash bargaining solution between tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, integer, number
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.barrier import barrier
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class NashMTL(Aggregator):
    """Navon et al. 2022 [paper via note; official code]: d = J^T a with a > 0 solving, entry by entry, G a = 1 / a.

    It maximises sum_i log <g_i, d> over a ball. With unit rows, a_i = b_i / |g_i| and C b = 1 / b: only cosines
    matter. Equivalent to min 1/2 a'Ga - sum log a [derived], which is solved here (:mod:`mtlplugins.solvers.barrier`);
    the authors approximate it by a sequence of convex programs warm-started from the previous step, which makes
    their method depend on its history. Here it does not.

    Proved (where a common descent direction exists, of the K tasks whose gradient is not zero): a_i <g_i, d> = 1, so no
    conflict and every task gains; |d|^2 = K; d does not change when a row is scaled by a positive factor; for K = 2, d is along the bisector of the two gradients. Near a
    Pareto stationary point there is no finite solution: d is then zero to within rounding.

    Task-specific parameters get their gradients times a, as in the authors' code, which weights whole losses [code]. A
    task with zero gradient is left out; its head gets the mean weight, which is also what is reused for it [choice].

    Cost: the Gramian, then about 5 systems of size K; nothing but the Gramian if weights are reused.

    Args:
        update_every: compute the weights in every n-th step and reuse them in between [official code: 1].
        max_norm: clip d to this length; None: no clipping. The authors clip to 1 [official code].
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN
    degree: ClassVar[float] = 0.0
    handles_absent: ClassVar[bool] = False

    update_every: int = integer(1, low=1)
    max_norm: float | None = number(None, low=0.0, open_low=True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; reused weights belong to older gradients and promise nothing."""
        if self.update_every > 1:
            return frozenset({"conic-combination", "resume-equivalent"})
        out = {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "scale-free",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
        return frozenset(out | ({"matches-reference"} if self.max_norm is None else set()))

    def init(self, n_tasks: int) -> State:
        """The weights in use and their age, if they are reused."""
        if self.update_every == 1:
            return {}
        return {
            "weights": torch.ones(n_tasks, dtype=torch.float64, device="cpu"),
            "age": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """a = b / |g|."""
        index = list(view.task_index)
        if self.update_every > 1 and int(state["age"]) % self.update_every:
            held = state["weights"][index]
            return Aggregation(
                weights=held, state={**state, "age": state["age"] + 1}, diagnostics={"reused": True}, head_weights=held
            )
        rows = _numpy.read(view)
        if len(rows.norms):
            b, certificate = barrier(rows.matrix, rows.norms, 1.0)
            b, checked = without_conflict(rows.matrix, b)
            diagnostics = {**certificate.diagnostics(), **checked}
            if self.max_norm is not None:
                b = b * min(1.0, self.max_norm / max(float(b @ rows.matrix @ b), 1e-300) ** 0.5)
            a = b / rows.norms
            weights, heads = rows.scatter(a), rows.scatter(a, dead=float(a.mean()))
        else:
            weights, heads, diagnostics = np.zeros(view.n_tasks), np.ones(view.n_tasks), {}
        out, outer = _numpy.tensor(weights), _numpy.tensor(heads)
        # Without a gradient there is nothing to hold, and the next step tries again.
        if self.update_every > 1 and len(rows.norms):
            held = state["weights"].clone()
            held[index] = outer
            state = {"weights": held, "age": state["age"] + 1}
        return Aggregation(weights=out, state=state, diagnostics=diagnostics, head_weights=outer)
