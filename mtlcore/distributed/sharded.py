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
from typing import Literal

import torch
from torch import Tensor, nn

from mtlcore import linalg, reading
from mtlcore.distributed.dtensors import Columns, is_sharded, local, replicas, shard
from mtlcore.distributed.heads_apart import FORCED, KEPT, MISSING, HeadsApart
from mtlcore.distributed.passes import Passes
from mtlcore.distributed.sums import Sums
from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.features_only import common, refuse_apart
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate

Mode = Literal["rows", "losses", "features", "kept"]
_WISHES: Mapping[str, tuple[str, str]] = {"features": FORCED, "kept": KEPT}
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
        mode: what is read: "rows" (or their Gramian), the "losses", the Gramian at the "features", or nothing, because
            weights were "kept".
        sums: of the micro-batches before.
    """

    def __init__(
        self,
        batch: Batch,
        modules: Sequence[nn.Module],
        heads: tuple[nn.Module | None, Sequence[nn.Parameter]],
        told: Sequence[Tensor],
        processes: int,
        mode: Mode,
        sums: Sums | None = None,
    ) -> None:
        self._batch = batch
        self._told = told
        self.mode = mode
        self.weights_whole_losses = mode == "losses"  # type: ignore[misc]
        self._replicas = replicas(batch.shared, processes) if batch.shared else 1
        leaves = [*batch.shared, *(t for t in told if is_sharded([t])), *batch.leaves.values()]
        self._passes = Passes(modules, leaves)
        self._heads_module = heads
        self._apart: HeadsApart | None = None
        self._cotangents: list[list[Tensor]] = []
        self._wire: Wire | None = None
        self._names: list[str] = []
        self._shares: list[float] = []
        self.sums = sums or Sums()
        """Of micro-batches, with this one once it has been started."""

    # --- the passes -------------------------------------------------------------------------------------------

    def start(self, wire: Wire, counts: Mapping[str, float], mine: Mapping[str, float], settle: Settle) -> str:
        """All processes are well: differentiate.

        Args:
            wire: of the run.
            counts: by task that some process has, how many have it.
            mine: the losses of this process.
            settle: of the run.

        Returns:
            How, for a report; "" where there is nothing to say.
        """
        self._wire, uneven = wire, any(c < wire.size for c in counts.values())
        if self.mode == "rows":
            settle(lambda: self.sums.check(self._batch.shared))
        self.sums.begin(mine, uneven)
        if uneven or self.mode in _WISHES:
            wish = _WISHES.get(self.mode, MISSING)
            self._apart = HeadsApart(self._batch, *self._heads_module, self._told, wish)
            settle(self._apart.check)
            self._pull_heads(self._apart, list(counts))
        if self.mode == "rows":
            self._pull_trunk(list(counts))
        if self._apart is not None or self.mode == "rows":
            settle(lambda: self._check_passes(list(counts)))
        return "; heads apart, because some process lacks a task" if uneven else ""

    def _check_passes(self, names: Sequence[str]) -> None:
        """
        Raises:
            LossError: no loss reaches the trunk.
            NonFiniteError: a gradient of the heads is NaN or infinite; names the task.
        """
        if self.mode == "rows" and not any(self.sums.used):
            raise self._batch.unreached()
        here = [[(t, local(g)) for t, g in self.sums.heads.get(n, {}).values()] for n in names]
        reading.check_heads(here, names)

    def _pull_heads(self, apart: HeadsApart, names: Sequence[str]) -> None:
        mine = {name: i for i, name in enumerate(self._batch.names)}
        with self._passes.held():
            for name in names:
                cotangents, found = apart.pull(mine.get(name))
                self._cotangents.append(cotangents)
                self.sums.add_heads(name, found)

    def _pull_trunk(self, names: Sequence[str]) -> None:
        shared = self._batch.shared
        self._columns = Columns(shared)
        sizes = self._columns.sizes
        self._rows = torch.zeros(len(names), sum(sizes), dtype=linalg.row_dtype(shared), device=local(shared[0]).device)
        self.sums.used = self.sums.used or [False] * len(shared)
        where = {id(p): n for n, p in enumerate(shared)}
        for i, name in enumerate(names):
            cells, heads = self._rows[i].split(sizes), []
            for leaf, g in self._pull(i, retain=i + 1 < len(names)):
                n = where.get(id(leaf))
                if n is None:
                    heads.append((leaf, g))
                else:
                    cells[n].copy_(local(g).flatten())
                    self.sums.used[n] = True
            self.sums.add_heads(name, heads)
            self.sums.add_row(name, self._rows[i])

    def close(self, counts: Mapping[str, float]) -> None:
        """No micro-batch follows: means are over the processes that have a task in one of them."""
        assert self._wire is not None
        self._names = list(counts)
        self._shares = [self._wire.size / c for c in counts.values()]
        self.heads = [list(self.sums.heads.get(n, {}).values()) for n in counts]
        if self.mode != "rows":
            return
        if self.sums.count > 1:
            self._rows = torch.stack([self.sums.rows[n] for n in counts])
        for row, share in zip(self._rows, self._shares):
            if share != 1.0:
                row *= share

    def _pull(self, task: int, retain: bool) -> list[Pair]:
        if self._apart is not None:
            return self._passes.pull(self._apart.features, self._cotangents[task], retain)
        loss = self._batch.losses[task]
        return self._passes.pull([loss], self._batch.seed(task) or [torch.ones_like(loss)], retain)

    # --- what a method reads ----------------------------------------------------------------------------------

    def gramian(self) -> Tensor:
        """(k, k) float64."""
        if self.mode == "features":
            return self._at_features()
        return linalg.symmetric(self._summed(linalg.products(self._rows)))

    def _at_features(self) -> Tensor:
        # Every number of the features belongs to a sample of one process: no cross terms.
        wire = self._wire
        assert wire is not None
        shares = [s / wire.size for s in self._shares]
        rows = torch.stack([torch.cat([c.flatten() for c in cs]) * s for cs, s in zip(self._cotangents, shares)])
        gram = linalg.symmetric(wire.matrix(linalg.products(rows)))
        refuse_apart(gram, self._names, lambda: wire.matrix(common(rows)), FORCED)
        return gram

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
        factors = [1.0] * len(self.heads) if answer.head_weights is None else answer.head_weights.tolist()
        if self.mode == "rows":
            pairs = self._direction(answer) + self._joined(zip(factors, self._shares, self.heads))
        elif self._apart is None:
            assert answer.weights is not None
            found = self._passes.pull(self._batch.losses, self._batch.seeds(answer.weights), retain=False)
            self._check(found)
            pairs = self._joined([(1.0, 1.0, found)])
        else:
            if answer.weights is None:
                raise PluginError('a method that returns a direction cannot use gradients="features".')
            pairs = self._late(self._apart, answer.weights)
            factors = answer.weights.tolist() if self.weights_whole_losses else factors
            pairs += self._joined(zip(factors, self._shares, self.heads))
        with torch.no_grad():
            for leaf, g in pairs:
                accumulate(leaf, g, fresh=True)

    def _late(self, apart: HeadsApart, weights: Tensor) -> list[Pair]:
        """One pass of the weighted cotangents through the trunk."""
        if not apart.features:
            return []
        sums = [torch.zeros_like(f) for f in apart.features]
        for w, share, cotangents in zip(weights.tolist(), self._shares, self._cotangents):
            for total, c in zip(sums, cotangents):
                total.add_(c, alpha=w * share)
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
        for p, piece, used in zip(shared, mine.split(self._columns.sizes), self.sums.used):
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
        if self.sums.uneven:  # each has met others
            met = self._wire.sum([float(id(t) in here) for t in self._told]).tolist()
            leaves = [t for t, n in zip(self._told, met) if n]
        sums = [here[id(t)][1] if id(t) in here else _zeros(t) for t in leaves]
        self._wire.add(sums, "gradients")
        return own + [(t, shard(g, t) if is_sharded([t]) else g) for t, g in zip(leaves, sums)]

    def _check(self, pairs: Sequence[Pair]) -> None:
        """Of a pass of the weighted losses, on all processes alike."""
        assert self._wire is not None
        shared = set(map(id, self._batch.shared))
        if shared and not any(id(leaf) in shared for leaf, _ in pairs):
            raise self._batch.unreached()
        bad = not graph.finite([local(g) for _, g in pairs])
        if float(self._wire.sum([float(bad)])):
            raise NonFiniteError(
                f"the gradient of one of the tasks {', '.join(map(repr, self._batch.names))} is NaN or infinite "
                f"although its loss is finite. Nothing was changed: parameters, method state and .grad are as before."
            )


def _zeros(parameter: Tensor) -> Tensor:
    """Of the whole parameter."""
    return torch.zeros(parameter.shape, dtype=parameter.dtype, device=local(parameter).device)
