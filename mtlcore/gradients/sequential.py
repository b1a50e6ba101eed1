"""K vector-Jacobian products, one per task, rows kept. Works with every module autograd can differentiate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients, accumulate, write_heads


class RowBuffer:
    """A (K, P) buffer kept between steps, with one view per row and parameter, so that no step allocates rows."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self.rows = torch.empty(0, 0)
        self.cells: list[list[Tensor]] = []

    def resize(self, n_rows: int, shared: Sequence[Tensor]) -> None:
        """Make room for ``n_rows`` gradients of ``shared``; keeps the memory if it fits."""
        key = (tuple(p.shape for p in shared), linalg.row_dtype(tuple(shared)), shared[0].device)
        if key == self._key and self.rows.shape[0] >= n_rows:
            return
        sizes = [p.numel() for p in shared]
        self.rows = torch.empty(n_rows, sum(sizes), dtype=linalg.row_dtype(tuple(shared)), device=shared[0].device)
        self.cells = [[c.view(p.shape) for c, p in zip(row.split(sizes), shared)] for row in self.rows]
        self._key = key


class Sequential(GradientSource):
    """For each task one ``torch.autograd.grad`` with respect to trunk and own head together."""

    name: ClassVar[str] = "sequential"
    provides: ClassVar[Needs] = Needs.JACOBIAN

    def __init__(self) -> None:
        self._buffer = RowBuffer()

    def collect(self, problem: GradientProblem) -> TaskGradients:
        """Fill the rows; the graph is freed by the last task."""
        shared = list(problem.shared)
        self._buffer.resize(len(problem.losses), shared)
        ids = {id(p) for p in shared}
        own, behind = graph.task_leaves(problem.losses, problem.features, problem.names)
        used = [False] * len(shared)
        heads: list[list[tuple[Tensor, Tensor]]] = []
        last = len(problem.losses) - 1
        for i, loss in enumerate(problem.losses):
            leaves = [t for t in own[i] + behind if id(t) not in ids]
            found = torch.autograd.grad(loss, shared + leaves, retain_graph=i < last, allow_unused=True)
            with torch.no_grad():
                for j, (cell, g) in enumerate(zip(self._buffer.cells[i], found)):
                    if g is None:
                        cell.zero_()
                    else:
                        used[j] = True
                        cell.copy_(g.to_dense() if g.is_sparse else g)
            heads.append([(t, g) for t, g in zip(leaves, found[len(shared) :]) if g is not None])
        return Rows(shared, self._buffer.rows[: last + 1], used, heads)


class Rows(TaskGradients):
    """Task gradients as rows of a buffer."""

    def __init__(
        self,
        shared: Sequence[Tensor],
        rows: Tensor,
        used: Sequence[bool],
        heads: Sequence[Sequence[tuple[Tensor, Tensor]]],
    ) -> None:
        self._shared = shared
        self._rows = rows
        self._used = used
        self._heads = heads
        self._gramian: Tensor | None = None

    def gramian(self) -> Tensor:
        if self._gramian is None:
            self._gramian = linalg.gramian(self._rows)
        return self._gramian

    def rows(self) -> Tensor:
        return self._rows

    def write(
        self,
        *,
        weights: Tensor | None,
        direction: Tensor | None,
        head_weights: Tensor | None,
        feature_gradient: Sequence[Tensor] = (),
    ) -> None:
        if feature_gradient:
            raise ConfigurationError("feature gradients need the losses-only gradient source (needs = Needs.LOSSES).")
        with torch.no_grad():
            if direction is None:
                assert weights is not None
                direction = linalg.combine(self._rows, weights)
            start = 0
            for p, used in zip(self._shared, self._used):
                size = math.prod(p.shape)
                # A parameter no task uses keeps grad None, as after sum(losses).backward().
                if used:
                    accumulate(p, direction[start : start + size].view(p.shape))
                start += size
        write_heads(self._heads, head_weights)
