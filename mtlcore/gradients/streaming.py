"""The Gramian without the K x P rows: layer by layer, weight gradients kept as factors where that is smaller.

For a weight matrix used in y = A W^T, task i's gradient is D_i^T A with the cotangent D_i (N, out) of y. When N (the
batch, or batch x tokens) is at most half the fan-in, only D_i is kept, N/fan-in of the row. The Gramian's share is
<D_i, (A A^T) D_j> and the weighted gradient is (sum_i w_i D_i)^T A: the K weight gradients are never formed, so that a
step costs K passes for the *activations* only. Convolutions with few sites are treated the same way, embeddings keep
the rows that were looked up, all else keeps its part of the row. Exact, with weights used several times included.

Where that does not save enough, parameters are taken block by block, each block with K passes of its own, and the
weighted gradient is one more backward pass: slower, and never more than a fifth of the K x P numbers for many tasks.

What it guarantees less than rows: there the direction is the given combination of the very rows whose inner products
were taken, to float64 rounding. Here the Gramian is exact for the factors, and the gradient is rounded to the
parameters' dtype as one backward pass of the weighted loss is.
"""

from __future__ import annotations

from typing import ClassVar

from mtlcore.contracts import Needs
from mtlcore.gradients import jacobian
from mtlcore.gradients.permit import Permit
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients
from mtlcore.gradients.storage import Storage

_SHARE = 0.17
"""Of K x P numbers, what a frugal stream stores at most ..."""
_LEAST = 6
"""... but for few tasks never less than so many gradients: it would take many passes to save little."""


class Streaming(GradientSource):
    """Factors instead of rows.

    Args:
        chunk: tasks differentiated at once, under vmap if more than one; None for all. 1 takes the least memory and
            works with every module.
        frugal: whether to take more passes where factors alone do not save enough (convolutions with many sites).
        threaded: whether to work on several tasks side by side, one thread each; with ``chunk`` 1, not ``frugal``.
        storage: memory shared with other sources; None for its own.
        limit: how many numbers a frugal stream may store at most, if that is less than it would by itself; it takes one
            number per task in any case.
    """

    name: ClassVar[str] = "streaming"
    provides: ClassVar[Needs] = Needs.GRAMIAN

    def __init__(
        self,
        chunk: int | None = 1,
        frugal: bool = True,
        threaded: bool = False,
        storage: Storage | None = None,
        limit: int | None = None,
    ) -> None:
        self._chunk = chunk
        self._frugal = frugal
        self._permit = Permit() if threaded else None
        self._storage = storage or Storage()
        self._limit = limit

    def collect(self, problem: GradientProblem, keep_graph: bool = False) -> TaskGradients:
        """Keep factors; the graph is freed by the last task, or by the last pass of all."""
        n_tasks = len(problem.losses)
        limit = None
        if self._frugal:
            limit = int(max(_SHARE * n_tasks, _LEAST) * sum(p.numel() for p in problem.shared))
            limit = limit if self._limit is None else min(limit, self._limit)
        return jacobian.collect(
            problem,
            self._storage,
            know_uses=True,
            factors=True,
            chunk=self._chunk or max(2, n_tasks),
            keep_graph=keep_graph,
            limit=limit,
            permit=self._permit,
        )
