"""One forward pass, ready to be differentiated."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.errors import LossError, listed
from mtlcore.gradients import graph
from mtlcore.gradients.torch_internals import tensor_hooks
from mtlcore.presence import Presence

Outline = tuple[str, int, bool, int]
"""Of a task in a graph: its name, how many functions the graph has, whether features separate, and how many hooks are
on the trunk's parameters."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Losses of the k tasks present, and how they came about.

    Args:
        presence: the tasks of the run, and which of them are here.
        losses: k scalar losses, each with a graph.
        features: the tensors between trunk and heads, or () if unknown.
        shared: the trunk's parameters that require gradients, in the order of their columns in J.
        stacked: the losses as one (k,) tensor with a graph; None if their dtypes or devices differ, or if unknown.
        scale: what cotangents of the losses start from instead of 1 (under a ``GradScaler``); gradients found are so
            many times the true ones.
        vector: the tensor (k,) of anonymous tasks that the losses were handed over as, or None.
    """

    presence: Presence
    losses: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    stacked: Tensor | None = None
    scale: float | None = None
    vector: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The k tasks present."""
        return self.presence.present

    @functools.cached_property
    def size(self) -> int:
        """P."""
        return sum([p.numel() for p in self.shared])

    def seed(self, task: int) -> list[Tensor] | None:
        """The cotangent of one task's loss; None for ones."""
        return None if self.scale is None else [torch.full_like(self.losses[task], self.scale)]

    def seeds(self, weights: Tensor) -> list[Tensor]:
        """Cotangents of all losses for the weighted sum."""
        weights = weights if self.scale is None else weights * self.scale
        first = self.losses[0]
        moved = linalg.placed(weights, first, weights.dtype)
        return [w.to(loss) for w, loss in zip(moved.unbind(), self.losses)]

    def without_unread(self) -> Batch:
        """The same without features that no loss reads, as where each task has features of its own and one is absent.
        (If none is read, all stay: that is a mistake, and :attr:`reach` says so.)"""
        if self.presence.complete or len(self.features) < 2:
            return self
        edges = [graph.edge(f) for f in self.features]
        _, read = graph.leaves(self.losses, frozenset(e for e in edges if e is not None))
        kept = tuple(f for f, e in zip(self.features, edges) if e is None or e in read)
        return dataclasses.replace(self, features=kept) if read else self

    def unreached(self) -> LossError:
        """What to say of a trunk that no loss reaches."""
        return LossError(
            f"no loss (of {listed([*map(repr, self.names)])}) reaches any parameter of the trunk that MultiTask was "
            f"given: it is not the network that made these losses (a copy of it?), or the features were detached on "
            f"the way to the heads. Pass the very module whose output the heads receive."
        )

    @functools.cached_property
    def leaves(self) -> dict[int, Tensor]:
        """{id: leaf} of every leaf that some loss reaches."""
        if "reach" in vars(self):
            return {id(t): t for group in (*self.reach.own, self.reach.behind) for t in group}
        return graph.leaves(self.losses)[0]

    @functools.cached_property
    def reach(self) -> graph.Reach:
        """Which leaves belong to which task."""
        if self.vector is None:
            return graph.reach(self.losses, self.features, self.names)
        one, k = graph.reach([self.vector], self.features, ["of the vector"]), len(self.losses)
        frees = (False,) * (k - 1) + (bool(self.features),)
        return dataclasses.replace(one, own=one.own * k, frees=frees)

    @functools.cached_property
    def separated(self) -> bool:
        """Whether the features separate heads from trunk: there are some, none is computed from another or has a hook
        (which would run in both parts), and no head uses again a leaf that is behind them or in the trunk."""
        behind = {id(p) for p in self.shared} | {id(t) for t in self.reach.behind}
        tied = any(id(t) in behind for own in self.reach.own for t in own)
        hooked = any(tensor_hooks(f) for f in self.features)
        return bool(self.features) and not (tied or hooked or graph.nested(self.features))

    @functools.cached_property
    def outlines(self) -> frozenset[Outline]:
        """One per task present. A task with an outline that it did not have before is in another graph. (A hook on a
        result inside the trunk cannot be seen from outside.)"""
        hooks = sum([tensor_hooks(p) for p in self.shared])  # they are not functions
        return frozenset((name, self.reach.size, self.separated, hooks) for name in self.names)
