"""From the losses to the trunk: the heads' own gradients, and one trunk vector-Jacobian product per task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph, torch_internals
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.taps import Taps


class Front:
    """One forward pass, seen from the trunk.

    With features the heads are differentiated once and apart from the trunk, and freed by their last user; the trunk
    starts from the features' cotangents. Where the features do not separate heads from trunk (none given, one computed
    from another, a leaf behind them that a head uses again, a hook on them, which would run in both parts) every task
    starts from its loss.

    Args:
        batch: the forward pass.
        keep_graph: whether nothing is to be freed.
    """

    def __init__(self, batch: Batch, keep_graph: bool = False) -> None:
        self.batch = batch
        self._keep_graph = keep_graph
        self._heads_done = False
        ids = {id(p) for p in batch.shared}
        reach = batch.reach
        self.separated = batch.separated
        self.roots: tuple[Tensor, ...] = batch.features if self.separated else batch.losses
        self.heads: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batch.losses]
        self._own = [[t for t in own if id(t) not in ids] for own in reach.own]
        self._outside = [t for t in reach.behind if id(t) not in ids]
        self._frees = reach.frees
        if keep_graph:
            self._frees = (False,) * len(reach.frees)
        self.last_frees = not self.separated or reach.last_to_all
        """Whether the last task's own pass lets go of the trunk's graph. (Without features that is not known, and not
        seen to: what only other tasks use goes with their losses.)"""
        self._differentiate: Callable[..., tuple[Tensor | None, ...]] = graph.differentiate

    def tap(self, taps: Taps) -> None:
        """From now on gradient edges among targets are read there."""
        self._differentiate = taps.differentiate

    def keep_graph(self) -> None:
        """From now on nothing is freed."""
        self._keep_graph = True
        self._frees = (False,) * len(self._frees)

    def free(self) -> None:
        """Free the graph, unless it is to be kept; for passes that all had to retain it."""
        if self._keep_graph:
            return
        # A hook need not know undefined gradients; those on parameters can be seen, and passed by.
        behind = [t for t in (*self.batch.shared, *self._outside) if not torch_internals.tensor_hooks(t)]
        if self.separated and any(self._frees):  # the heads are gone already
            graph.free(self.roots, behind)
        else:
            own = {id(t): t for leaves in self._own for t in leaves if not torch_internals.tensor_hooks(t)}
            graph.free(self.batch.losses, [*behind, *own.values()])

    def heads_are_done(self) -> None:
        """From now on the heads' own gradients are known: further pulls do not add to them."""
        self._heads_done = True

    def pull(self, task: int, targets: Sequence[Any], retain: bool) -> Sequence[Tensor | None]:
        """The gradient of one task's loss at ``targets`` (tensors or gradient edges)."""
        loss = self.batch.losses[task]
        wanted, n = [*targets, *self._outside], len(targets)
        if not self.separated:
            leaves = list({id(t): t for t in (*self._outside, *self._own[task])}.values())
            seed = self.batch.seed(task)
            found = self._differentiate([loss], [*targets, *leaves], seed, retain=retain or self._keep_graph)
            self._keep(task, leaves, found[n:])
            return found[:n]
        pairs = [(f, c) for f, c in zip(self.batch.features, self._cotangents(task)) if c is not None]
        if not pairs:
            return [None] * n
        features, seeds = [f for f, _ in pairs], [c for _, c in pairs]
        retain = retain or self._keep_graph
        found = self._differentiate(features, wanted, seeds, retain=retain)
        self._keep(task, self._outside, found[n:])
        return found[:n]

    def pull_together(self, tasks: slice, targets: Sequence[Any], retain: bool) -> list[Tensor | None]:
        """The same for several tasks at once under vmap: gradients with the task first."""
        if not self.separated:
            raise ConfigurationError(
                "differentiating several tasks at once needs features that separate heads from trunk (none "
                "computed from another, none with a hook, no leaf behind them used again by a head): pass "
                "backward(losses, features=z), or "
                'use gradients="sequential".'
            )
        features, n = self.batch.features, len(targets)
        seeds = self._cotangents_together(tasks)
        function = functools.partial(
            self._differentiate, features, [*targets, *self._outside], retain=retain or self._keep_graph
        )
        found = _vectorized(function, seeds)
        for task in range(tasks.start, tasks.stop):
            self._keep(task, self._outside, [None if g is None else g[task - tasks.start] for g in found[n:]])
        return found[:n]

    def _cotangents_together(self, tasks: slice) -> list[Tensor]:
        """Of every feature (c, ...). The heads of a vector of losses are differentiated together."""
        features, vector = self.batch.features, self.batch.vector
        if vector is None:
            of_tasks = [self._cotangents(task) for task in range(tasks.start, tasks.stop)]
            return [_stack(feature, cotangents) for feature, cotangents in zip(features, zip(*of_tasks))]
        own = self._own[0]
        seeds = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)[tasks]
        seeds = seeds if self.batch.scale is None else seeds * self.batch.scale
        retain = not self._frees[tasks.stop - 1]
        function = functools.partial(_from_vector, vector, [*features, *own], retain)
        found = _vectorized(function, [seeds])
        for i, task in enumerate(range(tasks.start, tasks.stop)):
            self._keep(task, own, [None if g is None else g[i] for g in found[len(features) :]])
        return [f.new_zeros(len(seeds), *f.shape) if g is None else g for f, g in zip(features, found[: len(features)])]

    def _cotangents(self, task: int) -> Sequence[Tensor | None]:
        features, leaves = self.batch.features, self._own[task]
        loss, seed = self.batch.losses[task], self.batch.seed(task)
        found = graph.differentiate([loss], [*features, *leaves], seed, retain=not self._frees[task])
        self._keep(task, leaves, found[len(features) :])
        return found[: len(features)]

    def _keep(self, task: int, leaves: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
        if self._heads_done:
            return
        self.heads[task] += [(t, g) for t, g in zip(leaves, found) if g is not None]


def _from_vector(
    vector: Tensor, inputs: Sequence[Any], retain: bool, seeds: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    return graph.differentiate([vector], inputs, seeds, retain=retain)


def _stack(feature: Tensor, cotangents: Sequence[Tensor | None]) -> Tensor:
    # (K, ...): zeros for a task that does not depend on the feature.
    return torch.stack([torch.zeros_like(feature) if c is None else c for c in cotangents])


def _vectorized(
    function: Callable[[Sequence[Tensor]], tuple[Tensor | None, ...]], seeds: Sequence[Tensor]
) -> list[Tensor | None]:
    if len(seeds[0]) == 1:  # a lone task needs no vmap, and so none of its restrictions
        return [None if g is None else g.unsqueeze(0) for g in function([s[0] for s in seeds])]
    return torch_internals.vmap(function, seeds)
