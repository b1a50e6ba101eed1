"""Micro-batches: task gradients are added up row by row and aggregated once.

The weights of most methods are not linear in the gradients, so aggregating each micro-batch and adding the directions
is a different (and noisier) method. Here the method sees the rows of the whole batch: sum_m g_i^m for each task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients import jacobian
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.plan import PLANS, Plan
from mtlcore.gradients.storage import Storage
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate, write_heads
from mtlcore.presence import Presence


class MicroBatches:
    """The sum so far. Takes K x P numbers besides the source's own.

    Args:
        plan: how the rows are made; by the reference unless told otherwise.
        storage: memory for the rows of one micro-batch.
    """

    def __init__(self, plan: Plan = PLANS["sequential"], storage: Storage | None = None) -> None:
        self._plan = plan
        self._storage = storage or Storage()
        self.count = 0
        self.overflowed = False
        """Whether a loss was not finite under a ``GradScaler``."""
        self.losses: dict[str, float] = {}
        self._rows: dict[str, Tensor] = {}
        self._heads: dict[str, dict[int, Pair]] = {}
        """By task and identity of a leaf outside the trunk: the leaf and the sum of its gradients."""
        self._used: set[int] = set()
        self._shared: tuple[Tensor, ...] | None = None

    def add(self, batch: Batch, values: Sequence[float]) -> None:
        """One more micro-batch with its losses' values; tasks may be missing from it. Its graph is freed.

        Raises:
            ConfigurationError: other parameters than in the micro-batches before require gradients.
        """
        if self._shared is None:
            self._shared = batch.shared
        elif list(map(id, self._shared)) != list(map(id, batch.shared)):
            raise ConfigurationError(
                "the trunk's parameters that require gradients changed between two micro-batches of one step: freeze "
                "and unfreeze between steps only. The micro-batches so far are forgotten."
            )
        found = jacobian.collect(self._plan, batch, self._storage)
        assert isinstance(found, jacobian.Stored)
        rows = found.rows()
        for i, (name, loss) in enumerate(zip(batch.names, values)):
            if name in self._rows:
                self._rows[name] += rows[i]
                self.losses[name] = self.losses[name] + loss
            else:
                self._rows[name] = rows[i].clone()
                self.losses[name] = loss
            heads = self._heads.setdefault(name, {})
            for leaf, gradient in found.heads[i]:
                _, before = heads.get(id(leaf), (leaf, None))
                if before is not None:
                    gradient = gradient + before if before.is_sparse else before + gradient
                heads[id(leaf)] = (leaf, gradient)
        self._used |= {id(p) for p in found.used}
        self.count += 1

    def finish(
        self, names: Sequence[str], shared: Sequence[Tensor]
    ) -> tuple[Presence, list[float], TaskGradients, str]:
        """Which of the run's tasks ``names`` came, the sums of their losses and of their rows, and how they were made.

        Raises:
            NonFiniteError: a micro-batch overflowed.
        """
        if self.overflowed:
            raise NonFiniteError("a loss of an earlier micro-batch was not finite.")
        everything = tuple(dict.fromkeys([*self.losses, *names])) if set(self.losses) - set(names) else tuple(names)
        presence = Presence.of(everything, self.losses)
        rows = torch.stack([self._rows.pop(n) for n in presence.present])
        heads = [list(self._heads[n].values()) for n in presence.present]
        found = Sum(shared, rows, [id(p) in self._used for p in shared], heads)
        reason = f"{self._plan.name}: the rows of {self.count} micro-batches, added up"
        return presence, [self.losses[n] for n in presence.present], found, reason


class Sum(TaskGradients):
    """Rows of several micro-batches, added up."""

    def __init__(
        self,
        shared: Sequence[Tensor],
        rows: Tensor,
        used: Sequence[bool],
        heads: Sequence[list[Pair]],
    ) -> None:
        self._shared = shared
        self._rows = rows
        self._used = used
        self.heads = heads

    @property
    def used(self) -> list[Tensor]:
        """The trunk parameters that some task depends on."""
        return [p for p, used in zip(self._shared, self._used) if used]

    def gramian(self) -> Tensor:
        """(K, K) float64."""
        return linalg.gramian(self._rows)

    def rows(self) -> Tensor:
        """(K, P)."""
        return self._rows

    def write(self, answer: Answer) -> None:
        """As :meth:`TaskGradients.write`."""
        direction = answer.direction
        with torch.no_grad():
            if direction is None:
                assert answer.weights is not None
                direction = linalg.combine(self._rows, answer.weights)
            else:
                direction = direction.to(self._rows.device, copy=True)  # the method may hold on to it
            parts = direction.split([p.numel() for p in self._shared])
            for p, used, part in zip(self._shared, self._used, parts):
                if used:
                    accumulate(p, part.view(p.shape), fresh=True)
        write_heads(self.heads, answer.head_weights)
