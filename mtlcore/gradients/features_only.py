"""The Gramian of the gradients at the shared representation Z instead of the trunk's parameters.

One pass through the heads per task, one pass through the trunk in all. What it guarantees: the direction is
exactly sum_i w_i g_i for the weights w found; what it does not: those weights were found from
Gram_Z = [<dL_i/dZ, dL_j/dZ>], which is not the Gramian of the g_i. A direction that conflicts with no task at Z
(J_Z d_Z >= 0) may conflict at the parameters, unless the trunk's Jacobian dZ/dtheta has orthonormal rows up to
scale. [paper] Sener & Koltun 2018 (MGDA-UB) bound the parameter norm by the norm at Z times ||dZ/dtheta||.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import Needs
from mtlcore.errors import ConfigurationError, NonFiniteError, PluginError
from mtlcore.gradients import graph
from mtlcore.gradients.source import (
    GradientProblem,
    GradientSource,
    TaskGradients,
    accumulate,
    all_or_nothing,
    write_heads,
)


class FeaturesOnly(GradientSource):
    """Gramian at the features; for methods that return weights.

    Args:
        wish: what the user asked for that led here, for errors.
        otherwise: what to do without it.
    """

    name: ClassVar[str] = "features"
    provides: ClassVar[Needs] = Needs.GRAMIAN

    def __init__(self, wish: str = 'gradients="features"', otherwise: str = 'use gradients="sequential"') -> None:
        self._wish = wish
        self._otherwise = otherwise

    def collect(self, problem: GradientProblem, keep_graph: bool = False) -> TaskGradients:
        """K passes through the heads only, which are freed by their last user unless the graph is to be kept."""
        if not problem.features:
            raise ConfigurationError(f"{self._wish} needs the features: backward(losses, features=z).")
        if graph.nested(problem.features):
            raise ConfigurationError(
                f"{self._wish} needs features of which none is computed from another; pass the outermost ones only, or "
                f"{self._otherwise}."
            )
        if any(f._backward_hooks for f in problem.features):
            raise ConfigurationError(
                f"{self._wish} cannot serve features with a hook (register_hook), which would run on the way to them "
                f"and again behind them: put the hook elsewhere, or {self._otherwise}."
            )
        if any(f.is_complex() for f in problem.features):
            raise ConfigurationError(
                f"{self._wish} takes inner products over real numbers, and the features are complex: give the heads "
                f"torch.view_as_real(z), and pass that, or {self._otherwise}."
            )
        features, own = list(problem.features), problem.reach.own
        through = {id(t) for t in problem.reach.behind} | {id(p) for p in problem.shared}
        sizes = [f.numel() for f in features]
        dtype = linalg.row_dtype(features)
        cotangents = torch.zeros(len(problem.losses), sum(sizes), dtype=dtype, device=features[0].device)
        heads: list[list[tuple[Tensor, Tensor]]] = []
        direct: list[list[tuple[Tensor, Tensor]]] = []
        for i, loss in enumerate(problem.losses):
            leaves = [t for t in own[i] if id(t) not in through]
            tied = [t for t in own[i] if id(t) in through]
            direct.append(list(zip(tied, _past_features(loss, features, tied))) if tied else [])
            retain = keep_graph or not problem.reach.frees[i]
            found = graph.differentiate([loss], features + leaves, retain=retain)
            for cell, g in zip(cotangents[i].split(sizes), found):
                if g is not None:
                    cell.copy_(g.flatten())
            heads.append([(t, g) for t, g in zip(leaves, found[len(features) :]) if g is not None])
        return _AtFeatures(problem, cotangents, heads, direct, self._otherwise)


def _past_features(loss: Tensor, features: Sequence[Tensor], tied: Sequence[Tensor]) -> list[Tensor]:
    """The part of the gradient with respect to ``tied`` that does not flow through the features."""
    hooks = [f.register_hook(torch.zeros_like) for f in features]
    try:
        found = graph.differentiate([loss], tied, retain=True)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tied, found)]


class _AtFeatures(TaskGradients):
    def __init__(
        self,
        problem: GradientProblem,
        cotangents: Tensor,
        heads: Sequence[list[tuple[Tensor, Tensor]]],
        direct: Sequence[Sequence[tuple[Tensor, Tensor]]],
        otherwise: str,
    ) -> None:
        self._problem = problem
        self._cotangents = cotangents
        self._heads = heads
        self._direct = direct
        self._otherwise = otherwise

    def gramian(self) -> Tensor:
        return linalg.gramian(self._cotangents)

    def rows(self) -> Tensor:
        raise PluginError('gradients="features" has no parameter Jacobian; use gradients="sequential".')

    def write(
        self,
        *,
        weights: Tensor | None,
        direction: Tensor | None,
        head_weights: Tensor | None,
        feature_gradient: Sequence[Tensor] = (),
    ) -> None:
        if weights is None:
            raise PluginError('a method that returns a direction cannot use gradients="features".')
        features = self._problem.features
        combined = linalg.combine(self._cotangents, weights)
        parts = combined.split([f.numel() for f in features])
        seeds = [c.view(f.shape).to(f.dtype) for c, f in zip(parts, features)]
        leaves = list({id(t): t for t in (*self._problem.shared, *self._problem.reach.behind)}.values())
        with all_or_nothing(leaves):
            graph.backward(features, seeds)
            with torch.no_grad():
                # What a head uses again (tied weights) reaches the losses past the features too.
                for w, pairs in zip(weights.tolist(), self._direct):
                    for p, g in pairs:
                        accumulate(p, g * w, fresh=True)
            gradients = [p.grad for p in leaves if p.grad is not None]
            if not graph.finite(gradients):
                raise NonFiniteError(
                    f"the trunk's weighted gradient is NaN or infinite although the losses and their gradients at the "
                    f"features are finite. Nothing was changed: parameters, method state and .grad are as before. Look "
                    f"for sqrt, log or a division at zero in the trunk; to learn which task it is, {self._otherwise}."
                )
        write_heads(self._heads, head_weights)
