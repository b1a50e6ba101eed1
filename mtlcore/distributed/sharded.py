"""A trunk in shards: ``torch.distributed.fsdp.fully_shard`` (FSDP2).

The graph does not show its parameters: FSDP puts whole ones in their place for the forward pass, and writes the mean
over the processes into ``.grad`` of the shards in a backward pass of its own. So each task gets one ``backward()``,
with the graph retained and without resharding in between, and what it wrote is taken away again: rows whose columns
are the shards. Inner products of shards, added up over the processes, are those of the whole rows, and the weighted sum
of the rows is the shard of the direction. Only for a method that reads rows they are gathered whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlcore import linalg, reading
from mtlcore.distributed.dtensors import Columns, is_sharded, local, replicas, shard
from mtlcore.distributed.heads_apart import HeadsApart
from mtlcore.distributed.passes import Passes
from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError, NonFiniteError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate

Settle = Callable[[Callable[[], None]], None]
"""Does something that may fail on one process, and fails on all then."""


class Sharded(TaskGradients):
    """Nothing is computed before all processes are known to be well: the passes are theirs together.

    Args:
        batch: the forward pass.
        modules: trunk and heads, as far as they are modules.
        heads: the second of them, and the parameters that it had when the MultiTask was made.
        told: parameters of heads and optimizers, in one order on all processes.
        processes: how many there are.
        whole_losses: whether one pass of the weighted losses is all that is needed.
    """

    def __init__(
        self,
        batch: Batch,
        modules: Sequence[nn.Module],
        heads: tuple[nn.Module | None, Sequence[nn.Parameter]],
        told: Sequence[Tensor],
        processes: int,
        whole_losses: bool,
    ) -> None:
        self._batch = batch
        self._told = told
        self.weights_whole_losses = whole_losses  # type: ignore[misc]
        self._replicas = replicas(batch.shared, processes) if batch.shared else 1
        leaves = [*batch.shared, *(t for t in told if is_sharded([t])), *batch.leaves.values()]
        self._passes = Passes(modules, leaves)
        self._heads_module = heads
        self._apart: HeadsApart | None = None
        self._cotangents: list[list[Tensor]] = []
        self._wire: Wire | None = None
        self._counts: list[float] = []

    # --- the passes -------------------------------------------------------------------------------------------

    def start(self, wire: Wire, counts: Mapping[str, float], settle: Settle) -> str:
        """All processes are well: differentiate.

        Args:
            wire: of the run.
            counts: by task that some process has, how many have it.
            settle: of the run.

        Returns:
            How, for a report; "" where there is nothing to say.
        """
        self._wire, self._counts = wire, list(counts.values())
        self.heads = [[] for _ in counts]
        if any(c < wire.size for c in self._counts):
            self._apart = HeadsApart(self._batch, *self._heads_module, self._told)
            settle(self._apart.check)
            self._pull_heads(self._apart, list(counts))
        if not self.weights_whole_losses:
            self._pull_trunk()
        if self._apart is not None or not self.weights_whole_losses:
            here = [[(t, local(g)) for t, g in pairs] for pairs in self.heads]
            settle(lambda: reading.check_heads(here, list(counts)))
        return "" if self._apart is None else "; heads apart, because some process lacks a task"

    def _pull_heads(self, apart: HeadsApart, names: Sequence[str]) -> None:
        mine = {name: i for i, name in enumerate(self._batch.names)}
        with self._passes.held():
            for name, pairs in zip(names, self.heads):
                cotangents, found = apart.pull(mine.get(name))
                self._cotangents.append(cotangents)
                pairs += found

    def _pull_trunk(self) -> None:
        shared, k = self._batch.shared, len(self.heads)
        self._columns = Columns(shared)
        sizes = self._columns.sizes
        self._rows = torch.zeros(k, sum(sizes), dtype=linalg.row_dtype(shared), device=local(shared[0]).device)
        self._used = [False] * len(shared)
        where = {id(p): n for n, p in enumerate(shared)}
        for i in range(k):
            cells = self._rows[i].split(sizes)
            for leaf, g in self._pull(i, retain=i + 1 < k):
                n = where.get(id(leaf))
                if n is None:
                    self.heads[i].append((leaf, g))
                else:
                    cells[n].copy_(local(g).flatten())
                    self._used[n] = True
        for i in range(k):
            if self._share(i) != 1.0:
                self._rows[i] *= self._share(i)

    def _pull(self, task: int, retain: bool) -> list[Pair]:
        if self._apart is not None:
            return self._passes.pull(self._apart.features, self._cotangents[task], retain)
        loss = self._batch.losses[task]
        return self._passes.pull([loss], self._batch.seed(task) or [torch.ones_like(loss)], retain)

    def _share(self, task: int) -> float:
        """FSDP divides by all processes, and the mean is over those that have the task."""
        assert self._wire is not None
        return self._wire.size / self._counts[task]

    # --- what a method reads ----------------------------------------------------------------------------------

    def gramian(self) -> Tensor:
        """(k, k) float64."""
        return linalg.symmetric(self._summed(linalg.products(self._rows)))

    def _summed(self, products: Tensor) -> Tensor:
        assert self._wire is not None
        return self._wire.matrix(products) / self._replicas

    @functools.cached_property
    def _whole(self) -> Tensor:
        assert self._wire is not None
        return self._columns.gathered(self._rows, self._wire)

    def rows(self) -> Tensor:
        """(k, P), gathered whole on every process."""
        return self._whole

    def across(self, vectors: Tensor) -> Tensor:
        """As :meth:`TaskGradients.across`; the same vectors on every process."""
        return self._summed(linalg.across(self._rows, self._columns.mine(vectors)))

    # --- the way into .grad -----------------------------------------------------------------------------------

    def write(self, answer: Answer) -> None:
        """As :meth:`TaskGradients.write`."""
        if answer.feature_gradient:
            raise ConfigurationError(
                "the method returns gradients of the features, which are those of one process: a sharded trunk (FSDP2) "
                "does not serve that. Use another method, or process_group=None with one process and a whole trunk."
            )
        k = len(self.heads)
        factors = [1.0] * k if answer.head_weights is None else answer.head_weights.tolist()
        if not self.weights_whole_losses:
            pairs = self._direction(answer) + self._joined(zip(factors, map(self._share, range(k)), self.heads))
        elif self._apart is None:
            assert answer.weights is not None
            found = self._passes.pull(self._batch.losses, self._batch.seeds(answer.weights), retain=False)
            self._check(found)
            pairs = self._joined([(1.0, 1.0, found)])
        else:
            assert answer.weights is not None
            pairs = self._late(self._apart, answer.weights)
            pairs += self._joined(zip(answer.weights.tolist(), map(self._share, range(k)), self.heads))
        with torch.no_grad():
            for leaf, g in pairs:
                accumulate(leaf, g, fresh=True)

    def _late(self, apart: HeadsApart, weights: Tensor) -> list[Pair]:
        """One pass of the weighted cotangents through the trunk."""
        if not apart.features:
            return []
        sums = [torch.zeros_like(f) for f in apart.features]
        for i, (w, cotangents) in enumerate(zip(weights.tolist(), self._cotangents)):
            for total, c in zip(sums, cotangents):
                total.add_(c, alpha=w * self._share(i))
        found = self._passes.pull(apart.features, sums, retain=False)
        self._check(found)
        return found

    @torch.no_grad()
    def _direction(self, answer: Answer) -> list[Pair]:
        """Shards of it, for the parameters that some task uses."""
        shared = self._batch.shared
        direction = answer.direction
        if direction is None:
            assert answer.weights is not None
            mine = linalg.combine(self._rows, answer.weights)
        else:
            mine = self._columns.mine(direction[None].to(self._rows.device))[0]
        out: list[Pair] = []
        for p, piece, used in zip(shared, mine.split(self._columns.sizes), self._used):
            if used:
                gradient = torch.zeros_like(p)
                local(gradient).copy_(piece.view(local(p).shape))
                out.append((p, gradient))
        return out

    @torch.no_grad()
    def _joined(self, parts: Iterable[tuple[float, float, Iterable[Pair]]]) -> list[Pair]:
        """Means over the processes, of (weight of a task, R / processes that have it, its gradients outside of the
        trunk): FSDP's are means of R already, the others those of this process."""
        assert self._wire is not None
        shards: dict[int, Pair] = {}
        here: dict[int, Pair] = {}
        for weight, share, pairs in parts:
            for leaf, g in pairs:
                reduced = is_sharded([g])
                into, factor = (shards, weight * share) if reduced else (here, weight * share / self._wire.size)
                _, before = into.get(id(leaf), (leaf, None))
                g = (g.to_dense() if g.is_sparse else g).to(leaf.dtype) * factor
                into[id(leaf)] = (leaf, g if before is None else before + g)
        return [*shards.values(), *self._averaged(here)]

    def _averaged(self, here: Mapping[int, Pair]) -> list[Pair]:
        """Parameters get the sum over the processes; any other leaf is this process's own."""
        assert self._wire is not None
        own = [pair for pair in here.values() if not isinstance(pair[0], nn.Parameter)]
        leaves: list[Tensor] = [leaf for leaf, _ in here.values() if isinstance(leaf, nn.Parameter)]
        if self._apart is not None:  # each has met others
            met = self._wire.sum([float(id(t) in here) for t in self._told]).tolist()
            leaves = [t for t, n in zip(self._told, met) if n]
        sums = [here[id(t)][1] if id(t) in here else _zeros(t) for t in leaves]
        self._wire.add(sums, "gradients")
        return own + [(t, shard(g, t) if is_sharded([t]) else g) for t, g in zip(leaves, sums)]

    def _check(self, pairs: Sequence[Pair]) -> None:
        assert self._wire is not None
        bad = not graph.finite([local(g) for _, g in pairs])
        if float(self._wire.sum([float(bad)])):
            raise NonFiniteError(
                f"the gradient of one of the tasks {', '.join(map(repr, self._batch.names))} is NaN or infinite "
                f"although its loss is finite. Nothing was changed: parameters, method state and .grad are as before."
            )


def _zeros(parameter: Tensor) -> Tensor:
    """Of the whole parameter."""
    return torch.zeros(parameter.shape, dtype=parameter.dtype, device=local(parameter).device)
