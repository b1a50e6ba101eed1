"""PCGrad: conflicting gradients are projected one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, flag
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.cosines import Array

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PCGrad(Aggregator):
    """Yu et al. 2020 [paper*]: for each task i, in a random order of the others j, with the original g_j,

        if <g_i', g_j> < 0:  g_i' <- g_i' - <g_i', g_j> / |g_j|^2 g_j ;      d = sum_i g_i'.

    It is computed from the Gramian, with g_i' as K coefficients of the rows. Each task has an independent random order
    from the view's generator, so two runs with one seed agree.

    Proved: every coefficient is >= 0; without conflicts d is the plain sum; for K = 2 no conflict remains. For K >= 3
    conflicts may remain, and d depends on the orders; the distribution of d treats all tasks alike. Cost: the Gramian
    and O(K^3), K vectorised steps.

    Args:
        reduction: "sum" of the projected gradients (the authors' code), or their "mean".
        include_own: whether the order of task i contains i itself. Then g_i' is also projected off g_i if earlier
            projections have turned it against g_i. False, the default, is the paper's algorithm (j != i); True is that
            of the authors' TensorFlow code, of Nash-MTL and of LibMTL [code]. For K = 2 there is no difference.
    """

    paper = "https://arxiv.org/abs/2001.06782"
    needs: ClassVar[Needs] = Needs.GRAMIAN
    claims: ClassVar[frozenset[str]] = frozenset(
        {
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "no-conflict-identity",
            "equivariant-in-distribution",
            "resume-equivalent",
            "parameter-rotation",
        }
    )

    reduction: str = choice("sum", ("sum", "mean"))
    include_own: bool = flag(False)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,)."""
        rows = _numpy.read(view)
        c = rows.matrix
        if len(c) == 2 or not (c < 0.0).any():  # the order does not matter
            least = np.minimum(c, 0.0)
            coefficients, projections = np.eye(len(c)) - least, int(np.count_nonzero(least))
        else:
            orders = torch.rand(len(c), len(c), generator=view.generator, dtype=torch.float64, device="cpu").argsort(
                dim=1
            )
            project = _few if len(c) <= _FEW else _many
            coefficients, projections = project(c, orders, self.include_own)
        weights = rows.scatter((rows.norms @ coefficients) / rows.norms, dead=1.0)
        if self.reduction == "mean":
            weights = weights / view.n_tasks
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics={"projections": projections})


_FEW = 8
"""Up to so many tasks, arithmetic on Python numbers is faster than vectorised steps."""


def _few(c: Array, orders: torch.Tensor, own: bool) -> tuple[Array, int]:
    cosines, projections = c.tolist(), 0
    coefficients = np.eye(len(c)).tolist()
    for i, order in enumerate(orders.tolist()):
        inner = list(cosines[i])  # <g_i', unit row j> / |g_i|
        for j in order:
            overlap = inner[j]
            if overlap < 0.0 and (own or j != i):
                coefficients[i][j] -= overlap
                inner = [a - overlap * b for a, b in zip(inner, cosines[j])]
                projections += 1
    return np.array(coefficients), projections


def _many(c: Array, orders: torch.Tensor, own: bool) -> tuple[Array, int]:
    """The same; the k-th projections of all tasks are made together."""
    task, projections = np.arange(len(c)), 0
    coefficients, inner = np.eye(len(c)), c.copy()
    for j in orders.numpy().T:
        overlap = np.minimum(inner[task, j], 0.0)
        if not own:
            overlap[j == task] = 0.0
        if overlap.any():
            coefficients[task, j] -= overlap
            inner -= overlap[:, None] * c[j]
            projections += int(np.count_nonzero(overlap))
    return coefficients, projections
