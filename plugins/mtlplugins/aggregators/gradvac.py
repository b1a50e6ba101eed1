"""``gradvac``: gradients turned towards each other until their cosines reach their moving averages."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch

from mtlcore import choice, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, Index


@dataclasses.dataclass(frozen=True)
class GradVac(Aggregator):
    """Wang et al. 2021 [lib code; paper*]: for each task i, in a random order of the others j, with original g_j,

        phi = cos(g_i', g_j);   if phi < rho_ij:
            g_i' <- g_i' + |g_i'| (rho_ij sqrt(1 - phi^2) - phi sqrt(1 - rho_ij^2)) / (|g_j| sqrt(1 - rho_ij^2)) g_j ;
        rho_ij <- (1 - beta) rho_ij + beta phi ;        d = sum_i g_i' .

    It is computed from the Gramian, with g_i' as K coefficients of unit rows. Each task has an independent random order
    from the view's generator, as in ``pcgrad``. The whole gradient is one group (the code's group type 0; for groups by
    layer use ``layerwise``).

    Proved: after an update cos(g_i', g_j) = rho_ij; every coefficient is >= 0; with beta = 0 all rho stay 0, which is
    PCGrad. Not promised: no conflict (even for K = 2, if rho is negative), or independence of earlier steps. A target
    of 1 is not pursued, because no finite multiple of g_j reaches it [choice; the code adds 1e-8]. A zero gradient does
    not take part; its targets do not change. Those of absent tasks do not change, either.
    Cost: the Gramian and O(K^3), K vectorised steps.

    Args:
        beta: step of the moving average; 0.5 is LibMTL's default [lib code], 0.01 the paper's [paper*].
        reduction: "sum" of the gradients, or their "mean".
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2010.05874"
    claims = frozenset(
        {
            "positively-homogeneous",
            "conic-combination",
            "equivariant-in-distribution",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    beta: float = number(0.5, low=0.0, high=1.0)
    reduction: str = choice("sum", ("sum", "mean"))

    def init(self, n_tasks: int) -> State:
        """The targets rho (K, K)."""
        return {"target": torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device="cpu")}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,), and the new targets."""
        rows = _numpy.read(view)
        k = len(rows.matrix)
        draws = torch.rand(view.n_tasks, view.n_tasks, generator=view.generator, dtype=torch.float64, device="cpu")
        live = np.arange(view.n_tasks) if rows.live is None else rows.live
        orders = draws.numpy()[live[:, None], live].argsort(axis=1)
        listed = np.array(view.task_index)[live]
        target = state["target"].clone()
        rho = target.numpy()[listed[:, None], listed]
        turn = _few if k <= _FEW else _many
        coefficients, rho, count = turn(rows.matrix, rho, orders, self.beta)
        target.numpy()[listed[:, None], listed] = rho
        weights = rows.scatter((rows.norms @ coefficients) / rows.norms, dead=1.0)
        if self.reduction == "mean":
            weights = weights / view.n_tasks
        answer, notes = _numpy.tensor(weights), {"turned": count}
        return Aggregation(weights=answer, state={"target": target}, diagnostics=notes)


_CHASED = 1e-12
"""Smallest sine of a target that is pursued."""
_FEW = 8
"""Up to so many tasks, arithmetic on Python numbers is faster than vectorised steps."""


def _few(c: Array, rho: Array, orders: Index, beta: float) -> tuple[Array, Array, int]:
    """Coefficients (K, K) of g_i' / |g_i| in the unit rows, the new targets, and the number of updates."""
    cosines, targets, count = c.tolist(), rho.tolist(), 0
    coefficients = np.eye(len(c)).tolist()
    for i, order in enumerate(orders.tolist()):
        row, overlap = coefficients[i], list(cosines[i])  # overlap[j] = <g_i', unit row j> / |g_i|
        for j in order:
            if j == i:
                continue
            length = math.sqrt(max(sum(a * b for a, b in zip(row, overlap)), 0.0))
            phi = min(max(overlap[j] / length, -1.0), 1.0) if length > 0.0 else 0.0
            wanted = targets[i][j]
            sine = math.sqrt((1.0 - wanted) * (1.0 + wanted))
            if phi < wanted - 4.0 * EPS * len(c) and sine > _CHASED and length > 0.0:
                add = wanted * length * math.sqrt((1.0 - phi) * (1.0 + phi)) / sine - overlap[j]
                row[j] += add
                overlap = [a + add * b for a, b in zip(overlap, cosines[j])]
                count += 1
            targets[i][j] += beta * (phi - wanted)
    return np.array(coefficients), np.array(targets), count


def _many(c: Array, rho: Array, orders: Index, beta: float) -> tuple[Array, Array, int]:
    """The same; the k-th updates of all tasks are made together."""
    coefficients, count, task = np.eye(len(c)), 0, np.arange(len(c))
    overlap, rho = c.copy(), rho.copy()
    for other in orders.T:
        length = np.sqrt(np.maximum((coefficients * overlap).sum(axis=1), 0.0))
        along = overlap[task, other]
        phi = np.clip(np.divide(along, length, out=np.zeros_like(along), where=length > 0.0), -1.0, 1.0)
        wanted = rho[task, other]
        sine = np.sqrt((1.0 - wanted) * (1.0 + wanted))
        turn = (other != task) & (phi < wanted - 4.0 * EPS * len(c)) & (sine > _CHASED) & (length > 0.0)
        # rho |g| sqrt(1 - phi^2) / sqrt(1 - rho^2) - phi |g|
        across = length * np.sqrt((1.0 - phi) * (1.0 + phi))
        add = np.divide(wanted * across, sine, out=np.zeros_like(sine), where=turn) - np.where(turn, along, 0.0)
        if turn.any():
            coefficients[task, other] += add
            overlap += add[:, None] * c[other]
            count += int(turn.sum())
        moves = other != task
        rho[task[moves], other[moves]] += beta * (phi - wanted)[moves]
    return coefficients, rho, count
