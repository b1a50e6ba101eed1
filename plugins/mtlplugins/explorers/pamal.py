"""``pamal``: a simplex of models in weight space, Pareto manifold learning (Dimitriadis et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcore import Explorer, flag, integer, number
from mtlcore.contracts import Learnt
from mtlcore.exploring import Exploration
from mtlplugins.explorers.draws import dirichlet

MEMBERS = "members."
BUFFER = "buffer."


@dataclasses.dataclass(frozen=True)
class PaMaL(Explorer):
    """One member per task; theta(a) = sum_k a_k theta_k, encoder and heads. [official code]

    - Every step draws ``window`` preferences a from Dirichlet(p, ..., p), and evaluates theta(a) for each on the same
      batch. The loss of task i is sum over the window of a_i L_i(theta(a)). [official code]
    - Multi-forward regularisation: R_i = log(mean_k exp(relu(violation_k))) over neighbours in the window, sorted by
      a_i; times ``lamb``; left out where it exceeds the loss itself [official code]. A violation is L_i at the higher
      preference minus L_i at the lower one, the paper's intent [paper*]; ``order_sign=-1`` is the order as the official
      code reads.
    - Members start from independent initial weights, where modules have ``reset_parameters()`` [official code].
      Statistics of batch norms are shared by all [official code].

    The code's balancing variants (gradnorm, rwa) are not here: ``aggregator`` balances the weighted losses instead.
    [choice]

    Proved: theta(e_k) is member k exactly; the gradient of member k is a_k times that at theta(a).

    Args:
        concentration: p; 1 is even on the simplex, larger is nearer to its centre.
        window: preferences drawn in a step; each costs a pass.
        lamb: weight of the regularisation.
        order_sign: 1: a higher preference shall mean a lower loss.
        reinitialise: independent initial weights; False: all members start at the model, which is then the whole front.
        aggregator: of the weighted losses, by name.
    """

    claims: ClassVar[frozenset[str]] = frozenset()

    concentration: float = number(1.0, low=0.0, open_low=True)
    window: int = integer(2, low=1)
    lamb: float = number(0.0, low=0.0)
    order_sign: int = integer(1, low=-1, high=1)
    reinitialise: bool = flag(True)
    aggregator: str = "sum"

    def search(self, work: Exploration) -> dict[str, Tensor]:
        """All members at once."""
        model = work.fresh()
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        members = [work.reinitialised() if self.reinitialise else work.fresh() for _ in work.tasks]
        stacked = {
            n: nn.Parameter(torch.stack([dict(m.named_parameters())[n].detach() for m in members])) for n in names
        }
        count = len(work.tasks)

        def closure(step: int) -> dict[str, Tensor]:
            drawn = [dirichlet(self.concentration, count, work.generator) for _ in range(self.window)]
            found = [work.losses(model, step, mixed(stacked, a)) for a in drawn]
            return self._together(torch.stack(drawn), found)

        price = self.window + work.price(self.aggregator) - 1.0
        shared = [stacked[n] for n in names if n in work.shared]
        own = [stacked[n] for n in names if n not in work.shared]
        work.train(closure, shared, own, self.aggregator, steps=work.steps(price))
        return {MEMBERS + n: v.detach() for n, v in stacked.items()} | {
            BUFFER + n: v for n, v in model.named_buffers() if n in model.state_dict()
        }

    def _together(self, drawn: Tensor, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss of each task over a window: drawn (W, K)."""
        out = {}
        for i, name in enumerate(found[0]):
            losses, weights = torch.stack([f[name] for f in found]), drawn[:, i].to(found[0][name])
            total = (weights * losses).sum()
            if self.lamb > 0.0 and self.window > 1:
                order = drawn[:, i].argsort(descending=True)
                falls = -losses[order].diff() * self.order_sign  # higher preference minus lower one
                penalty = self.lamb * (torch.logsumexp(falls.clamp_min(0.0), 0) - math.log(len(falls)))
                total = total + penalty if float(penalty.detach()) < float(total.detach()) else total
            out[name] = total
        return out

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        """theta(a)."""
        members = {n.removeprefix(MEMBERS): v for n, v in learnt.items() if n.startswith(MEMBERS)}
        return mixed(members, preference) | {
            n.removeprefix(BUFFER): v for n, v in learnt.items() if n.startswith(BUFFER)
        }


def mixed(members: Learnt, preference: Tensor) -> dict[str, Tensor]:
    """sum_k a_k theta_k, entry by entry: members (K, ...)."""
    return {n: torch.tensordot(preference.to(v), v, dims=1) for n, v in members.items()}
