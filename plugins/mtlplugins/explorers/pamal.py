"""``pamal``: a simplex of models in weight space, Pareto manifold learning (Dimitriadis et al. 2023)."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcore import Explorer, choice, flag, integer, number
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

    What a task counts beside its preference, for every model of the window [official code]:

    - ``balance="ls"``: nothing else.
    - ``"gradnorm"``: over |g_i| + 1e-3, g_i the gradient of L_i(theta(a)) with respect to the shared entries of all
      members. That costs K backward passes more for each model.
    - ``"rwa"``: times 1 - m_i / sum_j m_j, m the mean size of the losses of the last 25 models; from the 27th model on.
    - ``"full"``: both, the norm that of the loss times the latter.

    ``aggregator`` combines what comes of it; a sum in the code.

    Proved: theta(e_k) is member k exactly; the gradient of member k is a_k times that at theta(a).

    Args:
        concentration: p; 1 is even on the simplex, larger is nearer to its centre.
        window: preferences drawn in a step; each costs a pass.
        lamb: weight of the regularisation.
        order_sign: 1: a higher preference shall mean a lower loss.
        balance: how the losses are brought to comparable sizes.
        reinitialise: independent initial weights; False: all members start at the model, which is then the whole front.
        aggregator: of the weighted losses, by name.
    """

    claims: ClassVar[frozenset[str]] = frozenset()

    concentration: float = number(1.0, low=0.0, open_low=True)
    window: int = integer(2, low=1)
    lamb: float = number(0.0, low=0.0)
    order_sign: int = integer(1, low=-1, high=1)
    balance: str = choice("ls", ("ls", "gradnorm", "rwa", "full"))
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
        """The loss of each task over a window: drawn (W, K), and what each loss counts (W, K)."""
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
    """What a loss counts beside the preference of its task, one model after the other."""

    WINDOW, FLOOR = 25, 1e-3

    def __init__(self, kind: str, shared: Sequence[Tensor]) -> None:
        self._norms, self._running, self._shared = kind in ("gradnorm", "full"), kind in ("rwa", "full"), list(shared)
        self._seen: collections.deque[Tensor] = collections.deque(maxlen=self.WINDOW + 2)
        self.price = 2.0 / 3.0 if self._norms else 0.0
        """Passes for each task of each model."""

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
