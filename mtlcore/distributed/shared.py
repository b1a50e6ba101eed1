"""Task gradients of the global batch: means over the processes of what each found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.distributed.roster import Roster
from mtlcore.distributed.shards import Shards
from mtlcore.distributed.wire import Wire
from mtlcore.errors import ConfigurationError
from mtlcore.gradients.features_only import AtFeatures, refuse_apart
from mtlcore.gradients.losses_only import Weighted
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate
from mtlcore.presence import Presence

Settle = Callable[[Callable[[], list[Pair]]], list[Pair]]
"""Does something that may fail on one process, and fails on all then."""


class Shared(TaskGradients):
    """What :class:`TaskGradients` are for one process, for all of them. Nothing here passes the hooks of
    DistributedDataParallel: gradients are taken from the graph, averaged here, and then added to ``.grad``.

    Args:
        found: of this process.
        local: its tasks.
        whole: the tasks of all processes.
        counts: on how many processes each of the k tasks is present.
        shared: the trunk's parameters.
        used: which of ``shared``, and which of the roster, some process reaches.
        wire, roster, settle: of the run.
        by_row: whether the method reads whole rows.
    """

    def __init__(
        self,
        found: TaskGradients,
        *,
        local: Presence,
        whole: Presence,
        counts: Sequence[float],
        shared: Sequence[Tensor],
        used: tuple[Sequence[bool], Sequence[bool]],
        wire: Wire,
        roster: Roster,
        settle: Settle,
        by_row: bool,
    ) -> None:
        self._found = found
        self.weights_whole_losses = found.weights_whole_losses  # type: ignore[misc]
        self._shared, (self._trunk_used, self._heads_used) = shared, used
        self._wire, self._roster, self._settle = wire, roster, settle
        self._by_row = by_row
        self._where = [whole.present.index(n) for n in local.present]
        self._factors = [1.0 / counts[i] for i in self._where]
        """What each task of this process counts in the mean over those that have it."""
        self._names = whole.present
        self._k = len(whole.present)

    def gramian(self) -> Tensor:
        """(k, k) float64 of the means."""
        if isinstance(self._found, AtFeatures):
            found = self._found
            gram = self._wire.matrix(self._spread_gramian(found.gramian()))
            # Each process has looked at its own tasks only.
            refuse_apart(gram, self._names, lambda: self._wire.matrix(self._spread_gramian(found.common())), found.wish)
            return gram
        if self._by_row:
            return linalg.gramian(self.rows())
        return self._shards.gramian()

    def _spread_gramian(self, local: Tensor) -> Tensor:
        # Every number of the features belongs to a sample of one process: no cross terms.
        out = local.new_zeros(self._k, self._k)
        where = torch.tensor(self._where, device=local.device)
        factors = torch.tensor(self._factors, dtype=local.dtype, device=local.device)
        out[where[:, None], where[None, :]] = local * factors[:, None] * factors[None, :]
        return out

    @functools.cached_property
    def _shards(self) -> Shards:
        return Shards(self._wire, self._found.rows(), self._where, self._factors, self._k)

    @functools.cached_property
    def _rows(self) -> Tensor:
        local = self._found.rows()
        whole = local.new_zeros(self._k, local.shape[1])
        for i, factor, row in zip(self._where, self._factors, local):
            torch.mul(row, factor, out=whole[i])
        self._wire.add(list(whole.unbind()), "rows")
        return whole

    def rows(self) -> Tensor:
        """(k, P), whole on every process."""
        return self._rows

    def write(self, answer: Answer) -> None:
        """As :meth:`TaskGradients.write`, with the same numbers on every process."""
        if answer.feature_gradient:
            raise ConfigurationError(
                "the method returns gradients of the features, which are those of one process: with several processes "
                "that is not served. Use another method, or process_group=None with one process."
            )
        if isinstance(self._found, Weighted):
            pairs = self._settle(lambda: self._local_pass(answer.weights))
            trunk, heads = self._apart(pairs)
            direction = None
        elif isinstance(self._found, AtFeatures):
            trunk, heads = self._apart(self._settle(lambda: self._local_pass(answer.weights)))
            heads += self._own(answer.head_weights)
            direction = None
        else:
            direction, trunk, heads = self._direction(answer), [], self._own(answer.head_weights)
        known, unshared = self._sorted(heads)
        means = self._averaged(self._shared, self._trunk_used, trunk) if direction is None else []
        means += self._averaged(self._roster.known, self._heads_used, known)
        with torch.no_grad():
            if direction is not None:
                pieces = direction.split([p.numel() for p in self._shared])
                means += [(p, d.view(p.shape)) for p, d, u in zip(self._shared, pieces, self._trunk_used) if u]
            for leaf, gradient in (*means, *unshared):
                accumulate(leaf, gradient, fresh=True)

    def _local_pass(self, weights: Tensor | None) -> list[Pair]:
        assert isinstance(self._found, (Weighted, AtFeatures))
        assert weights is not None
        factors = torch.tensor(self._factors, dtype=weights.dtype, device=weights.device)
        return self._found.pull(weights[self._where] * factors)

    def _direction(self, answer: Answer) -> Tensor:
        if answer.direction is not None:
            return answer.direction.to(self._shared[0].device, copy=True)
        assert answer.weights is not None
        if self._by_row:
            return linalg.combine(self.rows(), answer.weights)
        return self._shards.combine(answer.weights)

    def _own(self, weights: Tensor | None) -> list[Pair]:
        """The tasks' own gradients, as far as they count here."""
        out = []
        for i, factor, pairs in zip(self._where, self._factors, self._found.heads):
            factor *= 1.0 if weights is None else float(weights[i])
            out += [(leaf, _dense(g) * factor) for leaf, g in pairs]
        return out

    def _apart(self, pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
        mine = {id(p) for p in self._shared}
        trunk: list[Pair] = []
        heads: list[Pair] = []
        for leaf, g in pairs:
            (trunk if id(leaf) in mine else heads).append((leaf, _dense(g)))
        return trunk, heads

    def _sorted(self, heads: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Those of the roster, and those of this process's own leaves, which nobody else has."""
        known: list[Pair] = []
        own: list[Pair] = []
        for leaf, g in heads:
            (known if id(leaf) in self._roster.where else own).append((leaf, g))
        return known, own

    @torch.no_grad()
    def _averaged(self, leaves: Sequence[Tensor], used: Sequence[bool], pairs: Iterable[Pair]) -> list[Pair]:
        """The sum over the processes for every leaf that one of them uses."""
        by_id: dict[int, Tensor] = {}
        for leaf, g in pairs:
            before = by_id.get(id(leaf))
            # In the leaf's dtype, as every process sends it; a copy, because autograd's tensor may be held elsewhere.
            by_id[id(leaf)] = g.to(leaf.dtype, copy=True) if before is None else before.add_(g)
        taken = [leaf for leaf, u in zip(leaves, used) if u]
        tensors = [by_id.get(id(leaf)) for leaf in taken]
        sums = [torch.zeros_like(leaf) if t is None else t for leaf, t in zip(taken, tensors)]
        self._wire.add(sums, "gradients")
        return list(zip(taken, sums))


def _dense(gradient: Tensor) -> Tensor:
    """Processes look up different rows of a table, so that their mean is sent whole."""
    return gradient.to_dense() if gradient.is_sparse else gradient
