"""``excess-mtl``: weights that grow with a task's excess risk, estimated from its own gradients."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import rows


@dataclasses.dataclass(frozen=True)
class ExcessMTL(Aggregator):
    """He et al. 2024 [official code, lib code]: multiplicative weights on estimated distances to convergence.

        S_i <- S_i + g_i^2 (entry by entry),   e_i = sum_p g_ip^2 / sqrt(S_ip),
        w_i <- w_i exp(eta e_i / e_i^0),       then sum w = K .

    e_i estimates the excess risk g_i' H^-1 g_i, with Adagrad's diagonal second moments for H. e_i^0 is its first value;
    by the quotient the unit of a task's loss cancels. The weight of a task is 1 in its first step. Whole losses are
    weighted, heads included, as in the code.

    Differs from the code: 1e-7 is not added under the root, because it would be an absolute scale of gradients; an
    entry that has always been zero contributes zero [choice]. If the first gradients of a task are zero, e_i^0 is taken
    from its first non-zero gradient. Proved: e_i >= 0, and 0 only for g_i = 0; weights are positive and sum to K (all
    present); if all gradients of a task are multiplied by c > 0, e_i is multiplied by c and no weight changes. Not
    promised: no conflict, or invariance under a rotation of the parameters. Absent tasks keep w, S and e^0; the weights
    of those present sum to their number.
    Cost: the rows, and K P numbers of state.

    Args:
        eta: step size of the weights; 1e-2 as in LibMTL [lib code], 1 in the authors' example.
    """

    needs = Needs.JACOBIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.02009"
    claims = frozenset(
        {
            "conic-combination",
            "permutation-equivariant",
            "positively-homogeneous",
            "resume-equivalent",
        }
    )

    eta: float = number(1e-2, low=0.0, log=True)

    def init(self, n_tasks: int) -> State:
        """log w (K,), e^0 (K,; 0: none yet) and the square roots of S (K, P)."""
        zeros = torch.zeros(n_tasks, dtype=torch.float64, device="cpu")
        return {"log_weights": zeros, "first": zeros.clone(), "root": rows.empty()}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,)."""
        grads, n = view.jacobian, len(state["log_weights"])
        root = rows.read(state["root"], view, n)
        at, listed = rows.index(view, root), list(view.task_index)
        # Roots, not sums, are kept: the square of 1e-25 is not a float32.
        root[at] = torch.hypot(root[at], grads)
        risk = _risk(grads, root[at])
        log_w, first = state["log_weights"].clone(), state["first"].clone()
        due = (first[listed] == 0.0) & (risk > 0.0)
        known = first[listed] > 0.0
        ratio = torch.where(known, risk / first[listed].clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        first[listed] = torch.where(due, risk, first[listed])
        log_w[listed] += self.eta * ratio.clamp_max(1e100)
        weights = torch.softmax(log_w[listed], 0) * view.n_tasks
        new = {"log_weights": log_w - log_w.max(), "first": first, "root": root}
        return Aggregation(weights=weights, state=new, diagnostics={"excess_risk": risk}, head_weights=weights)


def _risk(grads: Tensor, root: Tensor) -> Tensor:
    """e (K,), float64. |g| <= root in every entry, so the quotient is at most 1 and nothing overflows."""
    share = torch.where(root > 0.0, grads / torch.where(root > 0.0, root, 1.0), 0.0)
    return (share.double() * grads.double()).sum(dim=1).cpu()
