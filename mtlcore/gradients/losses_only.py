"""One backward pass of the weighted losses: what a loss-level method costs whatever K is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.source import GradientProblem, GradientSource, TaskGradients, all_or_nothing


class LossesOnly(GradientSource):
    """Nothing is computed before the weights are known; then one pass through heads and trunk together."""

    name: ClassVar[str] = "losses"
    provides: ClassVar[Needs] = Needs.LOSSES

    def collect(self, problem: GradientProblem) -> TaskGradients:
        """No work."""
        return _Weighted(problem)


class _Weighted(TaskGradients):
    weights_whole_losses = True

    def __init__(self, problem: GradientProblem) -> None:
        self._problem = problem

    def gramian(self) -> Tensor:
        raise PluginError("the losses-only gradient source has no Gramian.")

    def rows(self) -> Tensor:
        raise PluginError("the losses-only gradient source has no Jacobian.")

    def write(
        self,
        *,
        weights: Tensor | None,
        direction: Tensor | None,
        head_weights: Tensor | None,
        feature_gradient: Sequence[Tensor] = (),
    ) -> None:
        problem = self._problem
        if weights is None:
            raise PluginError("a method that declares needs = Needs.LOSSES must return weights, not a direction.")
        if head_weights is not None:
            raise PluginError(
                "a method that declares needs = Needs.LOSSES weights whole losses, heads included; separate "
                "head_weights would take a second pass: declare needs = Needs.GRAMIAN."
            )
        if feature_gradient and len(feature_gradient) != len(problem.features):
            raise ConfigurationError(
                f"{len(feature_gradient)} feature gradients for {len(problem.features)} feature tensors."
            )
        # The losses as roots with cotangents w_i: for w = 1 bit for bit what sum(losses).backward() does. One stacked
        # root where there is one, for a root costs as much as a small head.
        if problem.stacked is not None:
            roots, seeds = [problem.stacked], [linalg.placed(weights, problem.stacked)]
        else:
            roots = list(problem.losses)
            seeds = [linalg.placed(w, loss) for w, loss in zip(weights.unbind(), problem.losses)]
        if feature_gradient:
            roots += problem.features
            seeds += [g.to(f) for g, f in zip(feature_gradient, problem.features)]
        # A walk to the heads' parameters takes its time, so a step that begins without gradients does without: should
        # it fail, theirs had none before either.
        accumulating = any(p.grad is not None for p in problem.shared)
        leaves = list(graph.leaves(problem.losses)[0].values()) if accumulating else problem.shared
        try:
            with all_or_nothing(leaves):
                graph.backward(roots, seeds)
                if not graph.finite([g for p in problem.shared if (g := p.grad) is not None]):
                    self._blame()
        except BaseException:
            for leaf in () if accumulating else graph.leaves(problem.losses)[0].values():
                leaf.grad = None
            raise

    def _blame(self) -> None:
        problem = self._problem
        # The saved tensors are gone, the graph's structure is not: a task whose own leaves are bad is to blame.
        shared = {id(p) for p in problem.shared}
        own = [{i: t for i, t in graph.leaves([loss])[0].items() if i not in shared} for loss in problem.losses]
        guilty = []
        for i, (name, leaves) in enumerate(zip(problem.names, own)):
            others = set().union(*(o.keys() for j, o in enumerate(own) if j != i)) if len(own) > 1 else set()
            bad = [t for k, t in leaves.items() if k not in others]
            if not graph.finite([t.grad for t in bad if t.grad is not None]):
                guilty.append(name)
        if guilty:
            who = f"of task {' and '.join(repr(g) for g in guilty)}"
        elif len(problem.names) == 1:
            who = f"of task {problem.names[0]!r}"
        else:
            who = (
                f"of one of the tasks {', '.join(repr(n) for n in problem.names)} (one backward pass for all cannot "
                f'single it out: run the step with gradients="sequential", which names it)'
            )
        raise NonFiniteError(
            f"the gradient {who} is NaN or infinite although its loss is finite. Nothing was changed: "
            f"parameters, method state and .grad are as before. Look for sqrt, log or a division at zero."
        )
