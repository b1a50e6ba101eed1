"""The Gramian of the gradients at the shared representation Z instead of the trunk's parameters.

One pass through the heads per task, one pass through the trunk in all. What it guarantees: the direction is
exactly sum_i w_i g_i for the weights w found; what it does not: those weights were found from
Gram_Z = [<dL_i/dZ, dL_j/dZ>], which is not the Gramian of the g_i. A direction that conflicts with no task at Z
(J_Z d_Z >= 0) may conflict at the parameters, unless the trunk's Jacobian dZ/dtheta has orthonormal rows up to
scale. [paper] Sener & Koltun 2018 (MGDA-UB) bound the parameter norm by the norm at Z times ||dZ/dtheta||.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, accumulate, all_or_nothing, write_heads
from mtlcore.gradients.torch_internals import tensor_hooks

_FORCED = ('gradients="features"', 'use gradients="sequential"')


def collect(batch: Batch, *, keep_graph: bool = False, wish: tuple[str, str] = _FORCED) -> TaskGradients:
    """K passes through the heads only, which are freed by their last user unless the graph is to be kept.

    Args:
        batch: the forward pass.
        keep_graph: whether the graph is needed again.
        wish: for errors: what the user asked for that led here, and what to do without it.

    Raises:
        ConfigurationError: no features, or such that the Gramian at them means nothing; names the reason.
    """
    _check(batch, *wish)
    features, own = list(batch.features), batch.reach.own
    through = {id(t) for t in batch.reach.behind} | {id(p) for p in batch.shared}
    sizes = [f.numel() for f in features]
    dtype = linalg.row_dtype(features)
    cotangents = torch.zeros(len(batch.losses), sum(sizes), dtype=dtype, device=features[0].device)
    heads: list[list[Pair]] = []
    direct: list[list[Pair]] = []
    for i, loss in enumerate(batch.losses):
        leaves = [t for t in own[i] if id(t) not in through]
        tied = [t for t in own[i] if id(t) in through]
        direct.append(list(zip(tied, _past_features(batch, i, tied))) if tied else [])
        retain = keep_graph or not batch.reach.frees[i]
        found = graph.differentiate([loss], features + leaves, batch.seed(i), retain=retain)
        for cell, g in zip(cotangents[i].split(sizes), found):
            if g is not None:
                cell.copy_(g.flatten())
        heads.append([(t, g) for t, g in zip(leaves, found[len(features) :]) if g is not None])
    return AtFeatures(batch, cotangents, heads, direct, wish)


def _check(batch: Batch, wish: str, otherwise: str) -> None:
    if not batch.features:
        raise ConfigurationError(f"{wish} needs the features: backward(losses, features=z).")
    if graph.nested(batch.features):
        raise ConfigurationError(
            f"{wish} needs features of which none is computed from another; pass the outermost ones only, or "
            f"{otherwise}."
        )
    if any(tensor_hooks(f) for f in batch.features):
        raise ConfigurationError(
            f"{wish} cannot serve features with a hook (register_hook), which would run on the way to them "
            f"and again behind them: put the hook elsewhere, or {otherwise}."
        )
    if any(f.is_complex() for f in batch.features):
        raise ConfigurationError(
            f"{wish} takes inner products over real numbers, and the features are complex: give the heads "
            f"torch.view_as_real(z), and pass that, or {otherwise}."
        )


def _past_features(batch: Batch, task: int, tied: Sequence[Tensor]) -> list[Tensor]:
    """The part of the gradient with respect to ``tied`` that does not flow through the features."""
    hooks = [f.register_hook(torch.zeros_like) for f in batch.features]
    try:
        found = graph.differentiate([batch.losses[task]], tied, batch.seed(task), retain=True)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tied, found)]


def common(cotangents: Tensor) -> Tensor:
    """(k, k) float64: of how many numbers of the features both of two tasks (k, F) have a gradient."""
    there = (cotangents != 0).to(torch.float32)
    return (there @ there.T).double()


def refuse_apart(gram: Tensor, names: Sequence[str], common: Callable[[], Tensor], wish: tuple[str, str]) -> None:
    """
    Args:
        gram: (k, k) at the features.
        names: of the k tasks.
        common: gives how many numbers of the features two tasks share; asked where an inner product is zero.
        wish: what the user asked for, and what to do without it.

    Raises:
        ConfigurationError: two tasks share none, so that their inner product is zero by construction; names them.
    """
    alive = gram.diagonal() > 0
    apart = (gram == 0) & alive[:, None] & alive[None, :]
    if not bool(apart.any()):
        return
    for i, j in (apart & (common() == 0)).triu(1).nonzero().tolist():
        raise ConfigurationError(
            f"{wish[0]} compares task gradients at the features, and tasks {names[i]!r} and {names[j]!r} have no "
            f"number of them in common (a batch or a feature per task?): their cosine would be zero "
            f"whatever their gradients are. For tasks with batches of their own, {wish[1]}."
        )


class AtFeatures(TaskGradients):
    """Gradients at the features, one pass through the trunk short of the parameters'."""

    def __init__(
        self,
        batch: Batch,
        cotangents: Tensor,
        heads: Sequence[list[Pair]],
        direct: Sequence[Sequence[Pair]],
        wish: tuple[str, str],
    ) -> None:
        self._batch = batch
        self._cotangents = cotangents
        self.heads = heads
        self._direct = direct
        self._wish, self._otherwise = wish

    def gramian(self) -> Tensor:
        """(k, k) float64 inner products at the features.

        Raises:
            ConfigurationError: two tasks share no number of the features, so that their inner product is zero by
                construction, whatever their gradients are; or a task's gradient reaches the trunk past the features
                only; names them.
        """
        gram = linalg.gramian(self._cotangents)
        self._refuse_unseen((gram.diagonal() > 0).tolist())
        refuse_apart(gram, self._batch.names, self.common, (self._wish, self._otherwise))
        return gram

    def common(self) -> Tensor:
        """(k, k) float64, as :func:`common` has it."""
        return common(self._cotangents)

    @property
    def wish(self) -> tuple[str, str]:
        """For errors: what the user asked for, and what to do without it."""
        return self._wish, self._otherwise

    def _refuse_unseen(self, alive: Sequence[bool]) -> None:
        """A task of no gradient at the features would get no weight, as one that is solved."""
        for name, there, past in zip(self._batch.names, alive, self._direct):
            if not there and any(bool((g.to_dense() if g.is_sparse else g).any()) for _, g in past):
                raise ConfigurationError(
                    f"{self._wish} compares task gradients at the features, and task {name!r} reaches the trunk only "
                    f"past the features that were handed over: its gradient at them is zero, and it would get no "
                    f"weight. Hand over every output of the trunk, or {self._otherwise}."
                )

    def rows(self) -> Tensor:
        """Not known."""
        raise PluginError('gradients="features" has no parameter Jacobian; use gradients="sequential".')

    def _seeds(self, weights: Tensor) -> list[Tensor]:
        features = self._batch.features
        parts = linalg.combine(self._cotangents, weights).split([f.numel() for f in features])
        return [c.view(f.shape).to(f.dtype) for c, f in zip(parts, features)]

    def _leaves(self) -> list[Tensor]:
        return list({id(t): t for t in (*self._batch.shared, *self._batch.reach.behind)}.values())

    def pull(self, weights: Tensor) -> list[Pair]:
        """The weighted gradients (k,) of everything behind the features, handed out instead of written; frees the
        graph.

        Raises:
            NonFiniteError: one of them is NaN or infinite.
        """
        leaves = self._leaves()
        found = graph.differentiate(self._batch.features, leaves, self._seeds(weights), retain=False)
        pairs = [(t, g) for t, g in zip(leaves, found) if g is not None]
        pairs += [(t, g * w) for w, mine in zip(weights.tolist(), self._direct) for t, g in mine]
        self._check_finite([g for _, g in pairs])
        return pairs

    def _check_finite(self, gradients: Sequence[Tensor]) -> None:
        if not graph.finite(gradients):
            raise NonFiniteError(
                f"the trunk's weighted gradient is NaN or infinite although the losses and their gradients at the "
                f"features are finite. Nothing was changed: parameters, method state and .grad are as before. Look "
                f"for sqrt, log or a division at zero in the trunk; to learn which task it is, {self._otherwise}."
            )

    def write(self, answer: Answer) -> None:
        """See :class:`TaskGradients`: one pass through the trunk."""
        if answer.weights is None:
            raise PluginError('a method that returns a direction cannot use gradients="features".')
        seeds, leaves = self._seeds(answer.weights), self._leaves()
        with all_or_nothing(leaves):
            graph.backward(self._batch.features, seeds)
            with torch.no_grad():
                # What a head uses again (tied weights) reaches the losses past the features too.
                for w, pairs in zip(answer.weights.tolist(), self._direct):
                    for p, g in pairs:
                        accumulate(p, g * w, fresh=True)
            self._check_finite([p.grad for p in leaves if p.grad is not None])
        write_heads(self.heads, answer.head_weights)
