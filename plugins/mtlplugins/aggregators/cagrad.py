"""CAGrad: the largest worst-case improvement within a ball around the mean gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, number
from mtlplugins import outer
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.cagrad import cagrad
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CAGrad(Aggregator):
    """Liu et al. 2021 [paper via note; official code]: with g_0 the mean gradient,

        d = argmax_d min_i <g_i, d>   subject to   |d - g_0| <= c |g_0| .

    The primal problem is solved exactly (see :mod:`mtlplugins.solvers.cagrad`); the authors solve the dual with SLSQP.

    Proved: min_i <g_i, d> >= min_i <g_i, g_0>; for c >= 1 the ball contains 0, so min_i <g_i, d> >= 0: no conflict.
    For c < 1 conflicts may remain; c = 0 is the mean. Where no direction has a positive inner product with every
    gradient and c >= 1, the largest value of min_i <g_i, d> is 0 and the maximiser is not unique; the one nearest to
    g_0 is taken [choice]. A zero gradient gains nothing from any d; it is left out of the minimum.

    Limit: unit gradients that are opposite to within 1e-5 are resolved poorly by the Gramian. |d - g_0| then differs
    from the radius by up to 4 % (measured at a distance of 1e-7, where the gradients may already count as stationary).

    Cost: the Gramian, then a few K x K systems.

    Args:
        c: radius of the ball relative to |g_0|; 0.5 is the default of the authors' function [official code].
        rescale: divide d by "1+c^2" (the authors' default [official code]), by "1+c", or not at all: "none", the
            default here, so that d is the maximiser itself [choice].
        outer_scale: "n-tasks": d times K, as the authors do "to match the sum of the losses" [official code]; "one",
            the default: d is the maximiser itself.
        max_norm: clip d to this length after ``outer_scale`` (1 in the FairGrad and FAMO repositories [code]); None,
            the default: no clipping.
    """

    paper = "https://arxiv.org/abs/2110.14048"
    needs: ClassVar[Needs] = Needs.GRAMIAN

    c: float = number(0.5, low=0.0)
    rescale: str = choice("none", ("none", "1+c^2", "1+c"))
    outer_scale: str = choice("one", outer.SCALES)
    max_norm: float | None = number(None, low=0.0, open_low=True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; non-conflict needs c >= 1."""
        always = {
            "permutation-equivariant",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
        if self.max_norm is None:
            always.add("positively-homogeneous")
            if self.outer_scale == "one":
                always.add("matches-reference")
        if self.c >= 1.0:
            always |= {"non-conflicting", "strongly-stationary-zero"}
        if self.rescale == "none" and self.outer_scale == "one" and self.max_norm is None:
            always.add("no-worse-than-mean")
        return frozenset(always)

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """w = u + y / |g|."""
        rows = _numpy.read(view)
        uniform = 1.0 / view.n_tasks
        if not len(rows.norms):
            return Aggregation(weights=_numpy.tensor(np.full(view.n_tasks, uniform)), state=state)
        b0 = rows.norms * uniform
        y, certificate = cagrad(rows.matrix, 1.0 / rows.norms, b0, self.c)
        diagnostics = certificate.diagnostics()
        b = b0 + y
        if self.c >= 1.0:
            b, checked = without_conflict(rows.matrix, b, float(b0.sum()))
            diagnostics.update(checked)
        divisor = {"none": 1.0, "1+c^2": 1.0 + self.c**2, "1+c": 1.0 + self.c}[self.rescale]
        scale = outer.scale(self.outer_scale, view.n_tasks) / divisor
        scale *= outer.clip(rows.matrix, scale * b, self.max_norm)
        weights = rows.scatter(b / rows.norms, dead=uniform) * scale
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=diagnostics)
