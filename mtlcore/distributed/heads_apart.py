"""Heads apart from a trunk in shards: for steps in which some process lacks a task, and for those that make one pass
through the trunk only.

Every backward pass through FSDP2 is one of all processes: with the same parameters, in the same order. A process that
lacks a task cannot make that task's pass. It can start a pass at the features, with zeros. So heads are differentiated
down to the features, by each process alone, and the trunk's passes start there on all of them. (A process without the
task goes through some other head meanwhile, because FSDP may gather parameters of heads on the way; nothing of that
pass is used.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from mtlcore.distributed.dtensors import is_sharded
from mtlcore.errors import ConfigurationError
from mtlcore.gradients import graph, torch_internals
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Pair

MISSING = (
    "some process has no batch of a task, and the trunk is sharded (FSDP2)",
    "give every process all tasks of a step",
)
KEPT = ("refresh, with a sharded trunk (FSDP2)", "leave refresh out")
FORCED = ('gradients="features", with a sharded trunk (FSDP2)', 'use gradients="auto"')
"""What leads here, and what to do without it."""


class HeadsApart:
    """
    Args:
        batch: of this process.
        heads: their module, if it is known.
        then: the parameters that the heads had when the MultiTask was made: shards, where they are sharded.
        told: parameters outside of the trunk that all processes know.
        wish: for errors: what leads here, and what to do without it.
    """

    def __init__(
        self,
        batch: Batch,
        heads: nn.Module | None,
        then: Sequence[nn.Parameter],
        told: Sequence[Tensor],
        wish: tuple[str, str] = MISSING,
    ) -> None:
        self._wish = wish
        self._batch = batch
        self._heads = heads
        now = [] if heads is None else list(heads.parameters())
        # FSDP's root keeps its parameters whole after the forward pass, and has them in place of the shards.
        self._known = {id(a): b for a, b in zip(now, then)} | {id(t): t for t in told if not is_sharded([t])}
        self.features = [f for f in batch.features if f.requires_grad]
        edges = frozenset(e for e in map(graph.edge, self.features) if e is not None)
        self._own = [list(graph.leaves([loss], edges)[0].values()) for loss in batch.losses]

    def check(self) -> None:
        """
        Raises:
            ConfigurationError: the features do not separate heads from trunk, or a parameter of the heads cannot be
                told from its shard.
        """
        if self._batch.shared and not self.features:
            self._refuse("that takes the features, backward(losses, features=z)")
        behind = set(graph.leaves(self.features)[0])
        tied = any(id(t) in behind for own in self._own for t in own)
        if tied or graph.nested(self.features):
            self._refuse(
                "the heads are differentiated apart, and the features do not separate them from the trunk (one is "
                "computed from another, or a head uses what is behind them, or they are copies)"
            )
        if any(torch_internals.tensor_hooks(f) > torch_internals.fsdp_hooks(f) for f in self.features):
            self._refuse(
                "the heads are differentiated apart, and a hook on the features (register_hook) would run twice"
            )
        if self._heads is not None and any(hasattr(m, "unshard") for m in self._heads.modules()):
            self._refuse(
                "heads that are sharded one by one gather their parameters in passes of their own: leave fully_shard "
                "to the whole network and to the trunk's layers"
            )
        unknown = [t for own in self._own for t in own if isinstance(t, nn.Parameter) and id(t) not in self._known]
        if unknown:
            self._refuse(
                f"a parameter of the heads (shape {tuple(unknown[0].shape)}) is not known to all processes, or its "
                f"shard is not: hand them over, MultiTask(..., heads=heads), and keep the whole network's own "
                f"parameters after the forward pass (no reshard_after_forward=True for its root)"
            )

    def _refuse(self, text: str) -> NoReturn:
        what, otherwise = self._wish
        raise ConfigurationError(f"{what}: {text}. Or {otherwise}.")

    def pull(self, task: int | None) -> tuple[list[Tensor], list[Pair]]:
        """Cotangents of the features, and (leaf or its shard, whole gradient of this process's loss).

        Args:
            task: among those of this process; None for one that it lacks: zeros, and nothing.
        """
        batch, i = self._batch, 0 if task is None else task
        own, n = self._own[i], len(self.features)
        found = graph.differentiate([batch.losses[i]], [*self.features, *own], batch.seed(i), retain=True)
        if task is None:
            return [torch.zeros_like(f) for f in self.features], []
        cotangents = [torch.zeros_like(f) if g is None else g for f, g in zip(self.features, found)]
        pairs = [(self._known.get(id(t), t), g) for t, g in zip(own, found[n:]) if g is not None]
        return cotangents, pairs
