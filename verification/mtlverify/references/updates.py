"""Published updates, transcribed on the rows themselves: one object per run, asked step by step.

For methods that remember or draw, so that a run of a method can be held against a run of its transcription. Nothing is
clever here: loops over tasks, no Gramian, torch's own optimizers and autograd for what is learned. A method that draws
is given the numbers that it drew. Divisions by zero are not guarded: the inputs must not ask for them.
"""

# ruff: noqa: D102  (the docstring of a class is the equation that its methods compute)

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from mtlverify.references import NoUniqueAnswer
from mtlverify.references.least_distance import multipliers


class Update:
    """Base: a run of one method for K tasks; ``rows`` are one (K, P) float64 tensor per batch."""

    def __init__(self, plugin: Any, n_tasks: int) -> None:
        self.plugin, self.k, self.t = plugin, n_tasks, 0
        self.prepare()

    def prepare(self) -> None:
        """Before the first step."""

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        """The direction (P,)."""
        raise NotImplementedError

    def even(self) -> Tensor:
        """(K,) uniform weights."""
        return torch.full((self.k,), 1.0 / self.k, dtype=torch.float64)


def nearest_on_simplex(point: Tensor) -> Tensor:
    """The shift t with sum max(p - t, 0) = 1, by root finding."""
    p = point.numpy()
    t = brentq(lambda s: np.maximum(p - s, 0.0).sum() - 1.0, p.min() - 1.0, p.max(), xtol=1e-15, rtol=1e-15)
    return torch.from_numpy(np.maximum(p - t, 0.0))


class GradVac(Update):
    """Cosines below their moving averages are raised to them. [Wang et al. 2021, algorithm 1; LibMTL]"""

    def prepare(self) -> None:
        self.rho = torch.zeros(self.k, self.k, dtype=torch.float64)

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        g, total = rows[0], torch.zeros_like(rows[0][0])
        for i in range(self.k):
            mine = g[i].clone()
            for j in draws[i].argsort().tolist():
                if j == i:
                    continue
                phi, rho = mine @ g[j] / (mine.norm() * g[j].norm()), self.rho[i, j].clone()
                if phi < rho:
                    numerator = mine.norm() * (rho * (1 - phi**2).sqrt() - phi * (1 - rho**2).sqrt())
                    mine = mine + numerator / (g[j].norm() * (1 - rho**2).sqrt()) * g[j]
                self.rho[i, j] = (1 - self.plugin.beta) * rho + self.plugin.beta * phi
            total += mine
        return total / (self.k if self.plugin.reduction == "mean" else 1)


class GradNorm(Update):
    """Adam on sum_i |w_i |g_i| - T_i| through w = K softmax(v), the target a constant. [Chen et al. 2018; LibMTL]"""

    def prepare(self) -> None:
        self.v = torch.zeros(self.k, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.v], lr=self.plugin.lr, eps=1e-300)
        self.first: Tensor | None = None

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        self.first = losses if self.first is None else self.first
        w = self.k * self.v.softmax(0)
        lengths = w * rows[0].norm(dim=1)
        pace = losses / self.first
        target = (lengths.mean() * (pace / pace.mean()) ** self.plugin.alpha).detach()
        (self.v.grad,) = torch.autograd.grad((lengths - target).abs().sum(), self.v)
        self.adam.step()
        return w.detach() @ rows[0]


class MoCo(Update):
    """Tracked gradients, projected weights. [Fernando et al. 2023; LibMTL]"""

    def prepare(self) -> None:
        self.w, self.y = self.even(), torch.zeros(())

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        self.t += 1
        p, g = self.plugin, rows[0]
        if p.normalise == "loss":
            g = g / g.norm(dim=1, keepdim=True) * losses[:, None]
        self.y = self.y - p.beta / self.t**p.beta_sigma * (self.y - g)
        moved = self.w - p.gamma / self.t**p.gamma_sigma * ((self.y @ self.y.T) @ self.w + p.rho * self.w)
        self.w = nearest_on_simplex(moved) if p.update == "projection" else moved.softmax(0)
        return self.w @ self.y


class MoDo(Update):
    """Projected double sampling. [Chen et al. 2023; LibMTL]"""

    def prepare(self) -> None:
        self.w = self.even()

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        one, two = (rows[0], rows[1]) if len(rows) == 2 else (rows[1], rows[2])
        pull = one @ (two.T @ self.w) + self.plugin.rho * self.w
        self.w = nearest_on_simplex(self.w - self.plugin.gamma * pull)
        return self.w @ rows[0]


class SDMGrad(Update):
    """SGD with momentum on the simplex, three batches. [Xiao, Ban & Ji 2023; official code]"""

    def prepare(self) -> None:
        self.w = self.even()

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        p, a = self.plugin, rows[1] @ rows[2].T
        a = a / a.diagonal().clamp_min(0.0).sqrt().mean() ** 2
        w = self.w.clone().requires_grad_()
        optimizer = torch.optim.SGD([w], lr=p.lr, momentum=p.momentum)
        for _ in range(p.iterations):
            w.grad = a @ w.detach() + p.lambda_ * a.mean(dim=1)
            optimizer.step()
            w.data = nearest_on_simplex(w.data)
        self.w = w.detach()
        return (self.w @ rows[0] + p.lambda_ * rows[0].mean(dim=0)) / (1 + p.lambda_)


class ExcessMTL(Update):
    """Multiplicative weights on Adagrad's estimate of the excess risk. [He et al. 2024; official code]"""

    def prepare(self) -> None:
        self.w, self.sums = torch.ones(self.k, dtype=torch.float64), torch.zeros(())
        self.first: Tensor | None = None

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        self.sums = self.sums + rows[0] ** 2
        risk = (rows[0] ** 2 / self.sums.sqrt()).sum(dim=1)
        if self.first is None:
            self.first = risk
        else:
            self.w = self.w * (self.plugin.eta * risk / self.first).exp()
            self.w = self.w / self.w.sum() * self.k
        return self.w @ rows[0]


class DBMTL(Update):
    """Averaged gradients of log losses, made as long as the longest. [Lin et al. 2023; LibMTL]"""

    def prepare(self) -> None:
        self.mean = torch.zeros(())

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        self.t += 1
        g, beta = rows[0] / losses[:, None], self.plugin.beta / self.t**self.plugin.sigma
        self.mean = g + beta * (self.mean - g)
        lengths = self.mean.norm(dim=1)
        return torch.stack([lengths.max() / n * m for n, m in zip(lengths, self.mean)]).sum(0)


class GO4Align(Update):
    """Risk-guided weights, equal within the best partition; all partitions are tried. [Shen et al. 2024; code]"""

    def prepare(self) -> None:
        self.share = self.even()

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        self.share = self.share * (-self.plugin.eta * losses).exp()
        self.share = self.share / self.share.sum()
        value = losses.sum() / losses * self.share
        best = min(itertools.product(range(self.plugin.groups), repeat=self.k), key=lambda g: _spread(value, g))
        group = torch.tensor(best)
        return torch.stack([value[group == g].mean() for g in group]) @ rows[0]


def _spread(value: Tensor, group: tuple[int, ...]) -> float:
    labels = torch.tensor(group)
    parts = [value[labels == g] for g in set(group)]
    return float(sum(((part - part.mean()) ** 2).sum() for part in parts))


class Impartial(Update):
    """Equal projections of the gradients of exp(s_i) L_i, s by Adam. [Liu et al. 2021]"""

    def prepare(self) -> None:
        self.s = torch.zeros(self.k, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.s], lr=self.plugin.lr)

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        h = self.s.detach().exp()[:, None] * rows[0]
        units = h / h.norm(dim=1, keepdim=True)
        # alpha_{2..K} = g_1 U' (D U')^-1 with rows g_1 - g_k and u_1 - u_k, as the paper solves it.
        d, u = h[0] - h[1:], units[0] - units[1:]
        rest = torch.linalg.solve((d @ u.T).T, (h[0] @ u.T))
        (self.s.grad,) = torch.autograd.grad((self.s.exp() * losses - self.s).sum(), self.s)
        self.adam.step()
        return torch.cat([1.0 - rest.sum()[None], rest]) @ h


class AutoLambda(Update):
    """Adam on the hypergradients of one gradient step, weights not below zero. [Liu et al. 2021: Auto-Lambda; Ye et al.
    2021: MOML, for the mixture]"""

    def prepare(self) -> None:
        start = torch.full((self.k,), self.plugin.start, dtype=torch.float64)
        self.w = start.requires_grad_()
        self.adam = torch.optim.Adam([self.w], lr=self.plugin.lr, eps=0.0)

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        used = self.w.detach().clone()
        hyper = torch.stack([torch.stack([-g @ f for f in rows[1]]) for g in rows[0]])
        self.w.grad = hyper @ self.mixture(hyper)
        self.adam.step()
        self.w.data.clamp_(min=0.0)
        return used @ rows[0]

    def mixture(self, hyper: Tensor) -> Tensor:
        """(K,) weights of the upper losses."""
        return torch.ones(self.k, dtype=torch.float64)


class MOML(AutoLambda):
    """The same with the mixture of least norm: the best of all supports. [Ye et al. 2021]"""

    def mixture(self, hyper: Tensor) -> Tensor:
        tried = [w for w in map(functools.partial(_even_pull, hyper), _supports(self.k)) if bool((w >= 0.0).all())]
        return min(tried, key=lambda w: float((hyper @ w).norm()))


def _supports(k: int) -> list[list[int]]:
    return [list(c) for n in range(1, k + 1) for c in itertools.combinations(range(k), n)]


def _even_pull(columns: Tensor, support: list[int]) -> Tensor:
    """Weights with sum 1 on the support (K,) whose combination is shortest, by its Lagrange system."""
    n, part = len(support), columns[:, support]
    system = torch.ones(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n], system[n, n] = part.T @ part, 0.0
    right = torch.zeros(n + 1, dtype=torch.float64)
    right[n] = 1.0
    out = torch.zeros(columns.shape[1], dtype=torch.float64)
    out[support] = torch.linalg.solve(system, right)[:n]
    return out


class PCD(Update):
    """The primary gradient, with a share of its own progress for every other task. [TMLR 2026; TorchJD]"""

    def prepare(self) -> None:
        self.square = torch.zeros(self.k, dtype=torch.float64)

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        self.t += 1
        beta, p = self.plugin.beta, self.plugin.primary
        self.square = beta * self.square + (1 - beta) * rows[0].square().sum(1)
        h = rows[0] / (self.square / (1 - beta**self.t)).sqrt()[:, None]
        others = [i for i in range(self.k) if i != p]
        least = torch.tensor(
            [self.plugin.tau * float(h[i] @ h[i]) - float(h[i] @ h[p]) for i in others], dtype=torch.float64
        )
        try:
            y = torch.from_numpy(multipliers(h[others].numpy(), least.numpy()))
        except NoUniqueAnswer:
            y = torch.zeros(self.k - 1, dtype=torch.float64)
        d = h[p] + y @ h[others]
        return d / d.norm() * rows[0][p].norm()


class WPCGrad(Update):
    """PCGrad in which the tasks drawn first are not touched. [Bohn et al. 2024: abstract; the rest as in the method]

    ``draws`` (K, K + 1): the last column orders the tasks, row i the others for task i.
    """

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        p = torch.tensor(self.plugin.priorities or [1.0] * self.k, dtype=torch.float64)
        order = (-(p.log() - (-draws[:, -1].log()).log())).argsort().tolist()
        g = [row.clone() for row in rows[0]]
        if self.plugin.mode == "order":
            for turn, j in enumerate(order):
                for i in order[turn + 1 :]:
                    g[i] = _off(g[i], g[j])
        else:
            s = order[0]
            for i in range(self.k):
                for j in [j for j in draws[i, :-1].argsort().tolist() if j not in (i, s)] + [s]:
                    if i != s:
                        g[i] = _off(g[i], rows[0][j])
        return torch.stack(g).sum(0)


def _off(vector: Tensor, other: Tensor) -> Tensor:
    return vector - torch.clamp(vector @ other, max=0.0) / (other @ other) * other


class GradDrop(Update):
    """Coordinate by coordinate, one sign. [Chen et al. 2020, algorithm 1, lines 10 to 15]"""

    def step(self, rows: list[Tensor], losses: Tensor, draws: Tensor) -> Tensor:
        out = []
        for column, u in zip(rows[0].T.tolist(), draws.tolist()):
            purity = 0.5 * (1 + sum(column) / sum(map(abs, column)))
            sign = 1.0 if u < purity else -1.0
            leak = self.plugin.leak or [0.0] * self.k
            out.append(sum((a + (1 - a) * (sign * v > 0)) * v for a, v in zip(leak, column)))
        return torch.tensor(out, dtype=torch.float64) / (self.k if self.plugin.reduction == "mean" else 1)


TABLE: dict[str, type[Update]] = {
    "gradvac": GradVac,
    "gradnorm": GradNorm,
    "moco": MoCo,
    "modo": MoDo,
    "sdmgrad": SDMGrad,
    "excess-mtl": ExcessMTL,
    "db-mtl": DBMTL,
    "go4align": GO4Align,
    "imtl": Impartial,
    "auto-lambda": AutoLambda,
    "moml": MOML,
    "pcd": PCD,
    "wpcgrad": WPCGrad,
    "graddrop": GradDrop,
}
"""Registered name of a method -> its transcription."""
