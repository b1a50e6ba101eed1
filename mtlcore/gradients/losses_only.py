"""One backward pass of the weighted losses: what a loss-level method costs whatever K is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtlcore import linalg
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.batch import Batch
from mtlcore.gradients.task_gradients import Answer, Pair, TaskGradients, all_or_nothing


class Weighted(TaskGradients):
    """Nothing is computed before the weights are known; then one pass through heads and trunk together."""

    weights_whole_losses = True

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def gramian(self) -> Tensor:
        """Not known."""
        raise PluginError("the losses-only gradient source has no Gramian.")

    def rows(self) -> Tensor:
        """Not known."""
        raise PluginError("the losses-only gradient source has no Jacobian.")

    def write(self, answer: Answer) -> None:
        """See :class:`TaskGradients`."""
        batch = self._batch
        roots, seeds = self._roots(answer)
        leaves = self._leaves()
        with all_or_nothing(leaves):
            graph.backward(roots, seeds)
            if batch.shared and all(p.grad is None for p in batch.shared):
                raise batch.unreached()
            if not graph.finite([g for t in leaves if (g := t.grad) is not None]):
                self._blame({id(t): t.grad for t in leaves})

    def pull(self, weights: Tensor) -> list[Pair]:
        """The weighted gradients (k,) of every leaf, handed out instead of written; frees the graph.

        Raises:
            As :meth:`write`.
        """
        roots, seeds = self._roots(Answer(weights))
        leaves = self._leaves()
        found = graph.differentiate(roots, leaves, seeds, retain=False)
        pairs = [(t, g) for t, g in zip(leaves, found) if g is not None]
        if not graph.finite([g for _, g in pairs]):
            self._blame({id(t): g for t, g in pairs})
        return pairs

    def _leaves(self) -> list[Tensor]:
        # What a reentrant checkpoint hides from the graph is the trunk's, as a rule.
        return list({**self._batch.leaves, **{id(p): p for p in self._batch.shared}}.values())

    def _roots(self, answer: Answer) -> tuple[list[Tensor], list[Tensor]]:
        batch = self._batch
        _check(answer, batch)
        assert answer.weights is not None
        # The losses as roots with cotangents w_i: for w = 1 bit for bit what sum(losses).backward() does. One stacked
        # root where there is one, because a root costs as much as a small head.
        if batch.stacked is not None:
            weights = answer.weights if batch.scale is None else answer.weights * batch.scale
            roots, seeds = [batch.stacked], [linalg.placed(weights, batch.stacked)]
        else:
            roots, seeds = list(batch.losses), batch.seeds(answer.weights)
        if answer.feature_gradient:
            roots += batch.features
            seeds += [g.to(f) for g, f in zip(answer.feature_gradient, batch.features)]
        return roots, seeds

    def _blame(self, gradients: Mapping[int, Tensor | None]) -> None:
        batch = self._batch
        # The saved tensors are gone, the graph's structure is not: a task whose own leaves are bad is to blame.
        shared = {id(p) for p in batch.shared}
        own = [{i: t for i, t in graph.leaves([loss])[0].items() if i not in shared} for loss in batch.losses]
        guilty = []
        for i, (name, leaves) in enumerate(zip(batch.names, own)):
            others = set().union(*(o.keys() for j, o in enumerate(own) if j != i)) if len(own) > 1 else set()
            bad = [gradients.get(k) for k in leaves if k not in others]
            if not graph.finite([g for g in bad if g is not None]):
                guilty.append(name)
        if guilty:
            who = f"of task {' and '.join(repr(g) for g in guilty)}"
        elif len(batch.names) == 1:
            who = f"of task {batch.names[0]!r}"
        else:
            who = (
                f"of one of the tasks {', '.join(repr(n) for n in batch.names)} (one backward pass for all cannot "
                f'single it out: run the step with gradients="sequential", which names it)'
            )
        raise NonFiniteError(
            f"the gradient {who} is NaN or infinite although its loss is finite. Nothing was changed: "
            f"parameters, method state and .grad are as before. Look for sqrt, log or a division at zero."
        )


def _check(answer: Answer, batch: Batch) -> None:
    if answer.weights is None:
        raise PluginError("a method that declares needs = Needs.LOSSES must return weights, not a direction.")
    if answer.head_weights is not None:
        raise PluginError(
            "a method that declares needs = Needs.LOSSES weights whole losses, heads included; separate "
            "head_weights would take a second pass: declare needs = Needs.GRAMIAN."
        )
    if answer.feature_gradient and len(answer.feature_gradient) != len(batch.features):
        raise ConfigurationError(
            f"{len(answer.feature_gradient)} feature gradients for {len(batch.features)} feature tensors."
        )
