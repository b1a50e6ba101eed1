"""``pamal``: a simplex of models in weight space, Pareto manifold learning (Dimitriadis et al. 2023)."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcore import Explorer, choice, flag, integer, number, text
from mtlcore.contracts import Learnt
from mtlcore.exploring import Exploration
from mtlplugins.explorers.draws import dirichlet

MEMBERS = "members."
BUFFER = "buffer."


@dataclasses.dataclass(frozen=True)
class PaMaL(Explorer):
    """One member per task; theta(a) = sum_k a_k theta_k, encoder and heads. [official code]

    - Every step draws ``window`` preferences a from Dirichlet(p, ..., p), and evaluates theta(a) for each on the same
      batch. The loss of task i is the sum of a_i L_i(theta(a)) over the window. [official code]
    - Multi-forward regularisation: for each task the window is sorted by a_i, and
      R_i = log(mean_k exp(relu(violation_k))) over its neighbours, times ``lamb``. It is left out if it is larger than
      the loss itself [official code]. A violation is L_i at the higher preference minus L_i at the lower one, which is
      the paper's intent [paper*]; ``order_sign=-1`` is the sign in the official code.
    - Members start from independent initial weights if the modules have ``reset_parameters()`` [official code].
      All members share the statistics of batch norms [official code].

    The losses of every model of the window are also balanced by a factor [official code]:

    - ``balance="ls"``: no factor.
    - ``"gradnorm"``: 1 / (|g_i| + 1e-3), where g_i is the gradient of L_i(theta(a)) with respect to the shared entries
      of all members. This costs K more backward passes for each model.
    - ``"rwa"``: 1 - m_i / sum_j m_j, where m are the mean absolute losses of the last 25 models; from model 27 on.
    - ``"full"``: both; the norm is then that of the loss with the second factor.

    ``aggregator`` combines the resulting losses; in the code it is a sum.

    Proved: theta(e_k) is member k exactly; the gradient of member k is a_k times that at theta(a).

    Args:
        concentration: p; 1 is uniform on the simplex; a larger value is nearer to the centre.
        window: number of preferences per step; each costs one pass. The authors take 2 to 4, by data set [official
            code]; 2 here [choice].
        lamb: weight of the regularisation. The authors take 0 to 5, by data set [official code]; 0 here [choice].
        order_sign: 1: a higher preference should give a lower loss; -1: see above.
        balance: the balancing factor.
        reinitialise: independent initial weights; False: all members start at the given model.
        aggregator: name of the method that combines the losses.
    """

    paper = "https://arxiv.org/abs/2210.09759"

    claims: ClassVar[frozenset[str]] = frozenset()

    concentration: float = number(1.0, low=0.0, open_low=True)
    window: int = integer(2, low=1)
    lamb: float = number(0.0, low=0.0)
    order_sign: int = choice(1, (1, -1))
    balance: str = choice("ls", ("ls", "gradnorm", "rwa", "full"))
    reinitialise: bool = flag(True)
    aggregator: str = text("sum")

    def search(self, work: Exploration) -> dict[str, Tensor]:
        """All members are trained together."""
        model = work.fresh()
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        members = [work.reinitialised() if self.reinitialise else work.fresh() for _ in work.tasks]
        stacked = {
            n: nn.Parameter(torch.stack([dict(m.named_parameters())[n].detach() for m in members])) for n in names
        }
        count = len(work.tasks)
        shared = [stacked[n] for n in names if n in work.shared]
        balance = Balance(self.balance, shared)

        def closure(step: int) -> dict[str, Tensor]:
            drawn, found, factors = [], [], []
            for _ in range(self.window):
                drawn.append(dirichlet(self.concentration, count, work.generator))
                found.append(work.losses(model, step, mixed(stacked, drawn[-1])))
                work.spend(balance.price * count)
                factors.append(balance.factors(list(found[-1].values())))
            return self._together(torch.stack(drawn) * torch.stack(factors), torch.stack(drawn), found)

        price = self.window * (1.0 + balance.price * count) + work.price(self.aggregator) - 1.0
        own = [stacked[n] for n in names if n not in work.shared]
        work.train(closure, shared, own, self.aggregator, steps=work.steps(price))
        return {MEMBERS + n: v.detach() for n, v in stacked.items()} | {
            BUFFER + n: v for n, v in model.named_buffers() if n in model.state_dict()
        }

    def _together(self, counts: Tensor, drawn: Tensor, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss of each task over a window, for preferences ``drawn`` (W, K) and factors ``counts`` (W, K)."""
        out = {}
        for i, name in enumerate(found[0]):
            losses, weights = torch.stack([f[name] for f in found]), counts[:, i].to(found[0][name])
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


class Balance:
    """The balancing factors of the losses, one model after the other."""

    WINDOW, FLOOR = 25, 1e-3

    def __init__(self, kind: str, shared: Sequence[Tensor]) -> None:
        self._norms, self._running, self._shared = kind in ("gradnorm", "full"), kind in ("rwa", "full"), list(shared)
        self._seen: collections.deque[Tensor] = collections.deque(maxlen=self.WINDOW + 2)
        self.price = 2.0 / 3.0 if self._norms else 0.0
        """Cost for each task of each model, in passes."""

    def factors(self, losses: Sequence[Tensor]) -> Tensor:
        """(K,) float64 for the losses of the next model; no gradient goes through them."""
        out = torch.ones(len(losses), dtype=torch.float64)
        if self._running:
            self._seen.append(torch.stack([v.detach().double().cpu() for v in losses]))
            size = torch.stack(list(self._seen)[-self.WINDOW :]).mean(0).abs()
            if len(self._seen) > self.WINDOW + 1 and bool(size.any()):
                out = 1.0 - size / size.sum()
        if self._norms:
            out = out / (out * torch.stack([self._norm(v) for v in losses]) + self.FLOOR)
        return out

    def _norm(self, loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, self._shared, retain_graph=True, allow_unused=True)
        length: Tensor = torch.cat([g.double().flatten().cpu() for g in found if g is not None]).norm()
        return length


def mixed(members: Learnt, preference: Tensor) -> dict[str, Tensor]:
    """sum_k a_k theta_k, entry by entry: members (K, ...)."""
    return {n: torch.tensordot(preference.to(v), v, dims=1) for n, v in members.items()}
