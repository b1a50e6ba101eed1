"""MGDA: the min-norm point of the convex hull of the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice
from mtlcore.errors import LossError
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.cosines import Array, Cosines
from mtlplugins.solvers.min_norm import min_norm
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MGDA(Aggregator):
    """d = J^T a, a = argmin |J^T a|^2 over the simplex (Desideri 2012 [paper*]; Sener and Koltun 2018 [paper*]).

    Exact, where the usual code stops Frank-Wolfe early: solved as a nonnegative quadratic program on cosines.

    Proved (optimality conditions): <g_i, d> >= |d|^2 for every i, with equality where a_i > 0; hence no conflict, and
    d = 0 if and only if the point is Pareto stationary. A task with zero gradient makes it so: d = 0 (with
    ``normalize="l2"`` or ``"loss+"`` such a row has no direction and is left out instead).

    Cost: the Gramian, then a few K x K systems.

    Args:
        normalize: rescale the gradients first: "none"; "l2" by |g_i|; "loss" by L_i; "loss+" by L_i |g_i|
            (Sener and Koltun's variants [lib code]). d is then the min-norm point of the rescaled gradients.

    Raises:
        LossError: "loss" or "loss+" with a loss that is not positive.
    """

    needs: ClassVar[Needs] = Needs.GRAMIAN

    normalize: str = choice("none", ("none", "l2", "loss", "loss+"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; the normalisation decides how d reacts to scale."""
        always = {
            "non-conflicting",
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "strongly-stationary-zero",
            "zero-only-if-stationary",
        }
        own = {
            "none": {"simplex-weights", "duplicate-task", "descent-lower-bound"},
            "l2": {"scale-free"},
        }
        if self.normalize in ("none", "l2"):
            always.add("matches-reference")
        if self.normalize in ("none", "loss"):
            always.add("pareto-stationary-zero")
        return frozenset(always | own.get(self.normalize, set()))

    @property
    def degree(self) -> float:  # type: ignore[override]
        """p in A(tJ) = t^p A(J)."""
        return 0.0 if self.normalize in ("l2", "loss+") else 1.0

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Solve for b on the unit rows; in every normalisation w_i = b_i / |g_i|."""
        rows = _numpy.read(view)
        scaled = self.normalize in ("l2", "loss+")
        if rows.live is not None and (not scaled or not len(rows.live)):
            weights = np.ones(view.n_tasks)
            weights[rows.live] = 0.0
            weights = weights / weights.sum() if weights.any() else weights
            answer = _numpy.tensor(weights)
            return Aggregation(weights=answer, state=state, diagnostics={"solver": "stationary: zero gradient"})
        inverse = self._inverse_lengths(view, rows)
        b, square, certificate = min_norm(rows.matrix, inverse)
        b, checked = without_conflict(rows.matrix, b)
        if "polished" in checked:
            b = b / float(inverse @ b)  # back onto the simplex
        diagnostics = {**certificate.diagnostics(), **checked, "squared_norm": square}
        return Aggregation(weights=_numpy.tensor(rows.scatter(b / rows.norms)), state=state, diagnostics=diagnostics)

    def _inverse_lengths(self, view: StepView, rows: Cosines) -> Array:
        """1 / length of each rescaled gradient."""
        inverse = np.ones_like(rows.norms) if self.normalize in ("l2", "loss+") else 1.0 / rows.norms
        if self.normalize in ("loss", "loss+"):
            losses = rows.gather(_numpy.losses(view))
            for name, value in zip(view.task_names, _numpy.losses(view)):
                if not value > 0.0:
                    raise LossError(
                        f"MGDA(normalize={self.normalize!r}) divides by the losses, but the loss of task {name!r} is "
                        f"{value:g}. Use normalize='none' or 'l2', or a loss that is positive."
                    )
            inverse = inverse * losses
        return inverse
