"""PCGrad: projecting conflicting gradients one after another."""

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

    Done on the Gramian: g_i' is kept as its K coefficients. The random order comes from the view's generator, one
    independent permutation per task, so two runs with one seed agree.

    Proved: every coefficient is >= 0; without conflicts d is the plain sum; for K = 2 no conflict remains. For K >= 3
    it may conflict, and the answer depends on the order; its distribution treats tasks alike. Cost: the Gramian and
    O(K^3), K vectorised steps.

    Args:
        reduction: "sum" of the projected gradients (the authors' code), or their "mean".
        include_own: whether the order of task i contains i itself, so that a g_i' that earlier projections turned
            against g_i is projected off g_i, too. False, the default, is the paper's algorithm (j != i); True is what
            the authors' TensorFlow code, Nash-MTL and LibMTL do [code]. No difference for K = 2.
    """

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
"""Tasks up to which arithmetic on plain numbers takes less time than the calls of vectorised steps."""


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
    """All tasks take their k-th projection at once."""
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
