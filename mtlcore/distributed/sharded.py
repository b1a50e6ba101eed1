"""A trunk in shards: ``torch.distributed.fsdp.fully_shard`` (FSDP2).

The graph does not show its parameters: FSDP puts whole ones in their place for the forward pass, and writes the mean
over the processes into ``.grad`` of the shards in a backward pass of its own. So each task gets one ``backward()``,
with the graph retained and without resharding in between, and what it wrote is taken away again: rows whose columns
are the shards. Inner products of shards, added up over the processes, are those of the whole rows; the weighted sum of
the rows is the shard of the direction, and nothing has to be gathered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcore import linalg
from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate


def is_sharded(parameters: Sequence[Tensor]) -> bool:
    """Whether some parameter is a DTensor."""
    # By name: importing the class takes a second, which a run without it should not pay.
    return any(type(p).__name__ == "DTensor" or type(getattr(p, "data", p)).__name__ == "DTensor" for p in parameters)


_KNOWN = frozenset(("R", "S(0)", "Replicate()", "Shard(dim=0)"))
"""How placements of ``fully_shard`` are written."""


def replicas(parameters: Sequence[Any]) -> int:
    """On how many processes each shard lies.

    Raises:
        ConfigurationError: the parameters are not sharded alike, or not in the way of ``fully_shard``.
    """
    kinds = {tuple(map(str, p.placements)) if is_sharded([p]) else ("not sharded",) for p in parameters}
    shapes = {tuple(p.device_mesh.mesh.shape) for p in parameters if is_sharded([p])}
    if len(kinds) != 1 or len(shapes) != 1:
        raise ConfigurationError(
            f"the trunk's parameters are placed in different ways ({', '.join(sorted(' '.join(k) for k in kinds))}): "
            f"shard the whole trunk with fully_shard(trunk, mesh=...), and without tensor parallelism."
        )
    (kind,), (shape,) = kinds, shapes
    if not any(k.startswith("S") for k in kind) or not _KNOWN.issuperset(kind):
        raise ConfigurationError(
            f"the trunk's parameters are DTensors placed as {' '.join(kind)}, which is not how fully_shard (FSDP2) "
            f"places them: tensor parallelism is not served."
        )
    out = 1
    for k, size in zip(kind, shape):
        out *= size if k.startswith("R") else 1
    return out


class Sharded(TaskGradients):
    """Nothing is computed before all processes are known to be well: the passes are theirs together.

    Args:
        batch: the forward pass.
        modules: trunk and heads, as far as they are modules.
        told: parameters of heads and optimizers.
        whole_losses: whether one pass of the weighted losses is all that is needed.
    """

    def __init__(self, batch: Batch, modules: Sequence[nn.Module], told: Sequence[Tensor], whole_losses: bool) -> None:
        self._batch = batch
        self._modules = modules
        self._told = [t for t in told if is_sharded([t])]
        self.weights_whole_losses = whole_losses  # type: ignore[misc]
        self._replicas = replicas(batch.shared) if batch.shared else 1
        self._wire: Wire | None = None

    def start(self, wire: Wire) -> None:
        """All processes have every task, and are well: differentiate."""
        self._wire = wire
        if self.weights_whole_losses:
            return
        batch, shared = self._batch, self._batch.shared
        sizes = [_local(p).numel() for p in shared]
        self._rows = torch.zeros(
            len(batch.losses), sum(sizes), dtype=linalg.row_dtype(shared), device=_local(shared[0]).device
        )
        self._used = [False] * len(shared)
        self.heads = [[] for _ in batch.losses]
        k = len(batch.losses)
        for i, loss in enumerate(batch.losses):
            seeds = batch.seed(i) or [torch.ones_like(loss)]
            with self._gradients_apart(last=i + 1 == k) as found:
                torch.autograd.backward([loss], seeds, retain_graph=i + 1 < k)
                found += self._taken()
            ids = {id(p): n for n, p in enumerate(shared)}
            cells = self._rows[i].split(sizes)
            for leaf, g in found:
                n = ids.get(id(leaf))
                if n is None:
                    self.heads[i].append((leaf, g))
                else:
                    cells[n].copy_(_local(g).flatten())
                    self._used[n] = True

    @contextlib.contextmanager
    def _gradients_apart(self, last: bool) -> Iterator[list[Pair]]:
        """Inside, every ``.grad`` starts empty; afterwards it is as before. Only the last pass reshards."""
        leaves = self._everything()
        before = [(p, p.grad) for p in leaves]
        for p in leaves:
            p.grad = None
        sharded: list[Any] = [
            m for module in self._modules for m in module.modules() if hasattr(m, "set_reshard_after_backward")
        ]
        for m in sharded:
            m.set_reshard_after_backward(last, recurse=False)
        try:
            yield []
        finally:
            for m in sharded:
                m.set_reshard_after_backward(True, recurse=False)
            for p, old in before:
                p.grad = old

    def _everything(self) -> list[Tensor]:
        every = (*self._batch.shared, *self._told, *self._batch.leaves.values())
        return list({id(p): p for p in every}.values())

    def _taken(self) -> list[Pair]:
        return [(p, p.grad) for p in self._everything() if p.grad is not None]

    def gramian(self) -> Tensor:
        """(k, k) float64."""
        assert self._wire is not None
        return linalg.symmetric(self._wire.matrix(linalg.products(self._rows)) / self._replicas)

    def rows(self) -> Tensor:
        """Not in one place."""
        raise PluginError("a sharded trunk (FSDP2) has no whole rows in one place.")

    def write(self, answer: Answer) -> None:
        """As :meth:`TaskGradients.write`."""
        if answer.weights is None or answer.feature_gradient:
            raise ConfigurationError(
                "a sharded trunk (FSDP2) serves methods that answer with weights of the tasks; this one returns a "
                "direction or gradients of the features."
            )
        if self.weights_whole_losses:
            with self._gradients_apart(last=True) as pairs:
                torch.autograd.backward(list(self._batch.losses), self._batch.seeds(answer.weights))
                pairs += self._taken()
            self._check(pairs)
        else:
            pairs = self._combined(answer)
        whole = [(p, g) for p, g in pairs if not is_sharded([p])]
        self._average([g for _, g in whole])
        with torch.no_grad():
            for leaf, g in pairs:
                accumulate(leaf, g, fresh=True)

    @torch.no_grad()
    def _combined(self, answer: Answer) -> list[Pair]:
        assert answer.weights is not None
        shared: Sequence[Any] = self._batch.shared
        direction = linalg.combine(self._rows, answer.weights)
        out: list[Pair] = []
        for p, piece, used in zip(shared, direction.split([_local(p).numel() for p in shared]), self._used):
            if used:
                whole = torch.zeros_like(p)
                _local(whole).copy_(piece.view(_local(p).shape))
                out.append((p, whole))
        sums: dict[int, Pair] = {}
        for i, pairs in enumerate(self.heads):
            factor = 1.0 if answer.head_weights is None else float(answer.head_weights[i])
            for leaf, g in pairs:
                before = sums.get(id(leaf))
                sums[id(leaf)] = (leaf, g * factor if before is None else before[1] + g * factor)
        return [*out, *sums.values()]

    def _average(self, gradients: Sequence[Tensor]) -> None:
        # Not FSDP's: each process has the gradient of its own batch.
        assert self._wire is not None
        self._wire.add(gradients, "gradients")
        for g in gradients:
            g.div_(self._wire.size)

    def _check(self, pairs: Sequence[Pair]) -> None:
        assert self._wire is not None
        bad = not graph.finite([_local(g) for _, g in pairs])
        if float(self._wire.sum([float(bad)])):
            raise NonFiniteError(
                f"the gradient of one of the tasks {', '.join(map(repr, self._batch.names))} is NaN or infinite "
                f"although its loss is finite. Nothing was changed: parameters, method state and .grad are as before."
            )


def _local(tensor: Any) -> Tensor:
    """The shard that lies here."""
    found: Tensor = tensor.to_local() if is_sharded([tensor]) else tensor
    return found
