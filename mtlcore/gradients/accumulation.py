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
from mtlcore.gradients import graph, jacobian, torch_internals
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.jacobian import Stored
from mtlcore.gradients.plan import PLANS, Plan
from mtlcore.gradients.rows import SomeRows, Whole
from mtlcore.gradients.storage import Storage
from mtlcore.gradients.task_gradients import Pair
from mtlcore.presence import Presence

Sums = dict[int, Pair]
"""By identity of a leaf: the leaf and the sum of one task's gradients."""


class MicroBatches:
    """The sum so far. Takes K x P numbers besides the source's own; of a sparse table only the rows looked up.

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
        self._trunk: dict[str, Sums] = {}
        self._heads: dict[str, Sums] = {}
        self._shared: tuple[Tensor, ...] | None = None
        self._versions: list[int] = []
        """How often torch has seen each of them written to."""

    def add(self, batch: Batch, values: Sequence[float]) -> None:
        """One more micro-batch with its losses' values; tasks may be missing from it. Its graph is freed.

        Raises:
            ConfigurationError: other parameters than in the micro-batches before require gradients, or one of them was
                changed in between.
        """
        if self._shared is None:
            self._shared, self._versions = batch.shared, [p._version for p in batch.shared]
        elif list(map(id, self._shared)) != list(map(id, batch.shared)):
            raise ConfigurationError(
                "the trunk's parameters that require gradients changed between two micro-batches of one step: freeze "
                "and unfreeze between steps only. The micro-batches so far are forgotten."
            )
        self._check_unmoved(batch)
        found = jacobian.collect(self._plan, batch, self._storage)
        assert isinstance(found, Stored)
        with torch.no_grad():
            for i, (name, loss) in enumerate(zip(batch.names, values)):
                self.losses[name] = self.losses[name] + loss if name in self.losses else loss
                _add(self._trunk.setdefault(name, {}), found.of_task(i))
                _add(self._heads.setdefault(name, {}), found.heads[i])
        self.count += 1

    def _check_unmoved(self, batch: Batch) -> None:
        """Rows of one step belong to one point. (A look-up with ``max_norm`` writes into its table.)"""
        moved = [p for p, version in zip(batch.shared, self._versions) if p._version != version]
        if moved:
            uses = graph.uses(batch.losses)
            if any({u.kind for u in uses.get(id(p)) or ()} != {"table"} for p in moved):
                raise ConfigurationError(
                    f"a parameter of the trunk (shape {tuple(moved[0].shape)}) was changed between two micro-batches "
                    f"of one step, by an optimizer step or other code that writes into it: their gradients belong to "
                    f"different points. Move the parameters after backward(losses) only. The micro-batches so far are "
                    f"forgotten."
                )

    def finish(self, names: Sequence[str], shared: Sequence[Tensor]) -> tuple[Presence, list[float], Stored, str]:
        """Which of the run's tasks ``names`` came, the sums of their losses and of their rows, and how they were made.

        Raises:
            NonFiniteError: a micro-batch overflowed.
        """
        if self.overflowed:
            raise NonFiniteError("a loss of an earlier micro-batch was not finite.")
        everything = tuple(dict.fromkeys([*self.losses, *names])) if set(self.losses) - set(names) else tuple(names)
        presence = Presence.of(everything, self.losses)
        heads = [list(self._heads[n].values()) for n in presence.present]
        found = _joined(shared, [self._trunk.pop(n) for n in presence.present], heads)
        reason = f"{self._plan.name}: the rows of {self.count} micro-batches, added up"
        return presence, [self.losses[n] for n in presence.present], found, reason


def _add(sums: Sums, pairs: Sequence[Pair]) -> None:
    """Sparse gradients stay sparse, unless a dense one of the same leaf comes."""
    totals, more = [], []
    for leaf, gradient in pairs:
        _, before = sums.get(id(leaf), (leaf, None))
        if before is None:
            sums[id(leaf)] = (leaf, gradient.clone())  # the next micro-batch overwrites it
        elif before.is_sparse or gradient.is_sparse:
            sums[id(leaf)] = (leaf, gradient + before if before.is_sparse else before + gradient)
        else:
            totals.append(before)
            more.append(gradient)
    if totals:
        torch_internals.add_in_place(totals, more)


@torch.no_grad()
def _joined(shared: Sequence[Tensor], sums: Sequence[Sums], heads: Sequence[list[Pair]]) -> Stored:
    """The tasks' gradients as one source, as if they had come from one batch."""
    found = [[mine[id(p)][1] if id(p) in mine else None for mine in sums] for p in shared]
    parts = [_part(p, column) for p, column in zip(shared, found)]
    widths = [piece.width for piece in parts]
    stored = torch.zeros(len(sums), sum(widths), dtype=linalg.row_dtype(shared), device=shared[0].device)
    for piece, places, column in zip(parts, stored.split(widths, 1), found):
        for place, gradient in zip(places, column):
            if gradient is not None:
                piece.put(place, gradient)
    return Stored(shared, stored, parts, heads)


def _part(parameter: Tensor, gradients: Sequence[Tensor | None]) -> Whole | SomeRows:
    there = [g for g in gradients if g is not None]
    if there and all(g.is_sparse for g in there):
        read = torch.cat([g.coalesce().indices()[0] for g in there])
        piece: Whole | SomeRows = SomeRows(parameter, torch.unique(read))
    else:
        piece = Whole(parameter)
    piece.used = bool(there)
    return piece
