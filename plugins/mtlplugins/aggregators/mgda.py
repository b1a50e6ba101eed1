"""MGDA: the min-norm point of the convex hull of the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, number
from mtlcore.errors import LossError
from mtlplugins import outer
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.cosines import Array, Cosines
from mtlplugins.solvers.min_norm import min_norm
from mtlplugins.solvers.safety import without_conflict

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MGDA(Aggregator):
    """d = J^T a, a = argmin |J^T a|^2 over the simplex (Desideri 2012 [paper*]; Sener and Koltun 2018 [paper*]).

    It is solved exactly, as a nonnegative quadratic program on cosines; the usual code stops Frank-Wolfe early.

    Proved (optimality conditions): <g_i, d> >= |d|^2 for every i, with equality where a_i > 0; hence there is no
    conflict, and d = 0 if and only if the point is Pareto stationary. With a zero gradient among the rows the point is
    Pareto stationary, and d = 0. (With ``normalize="l2"`` or ``"loss+"`` such a row has no direction and is left out.)
    With applied_to="losses" and a normalisation only this holds: d = 0 only at Pareto stationary points.

    Cost: the Gramian, then a few K x K systems.

    Args:
        normalize: rescale the gradients first: "none"; "l2" by |g_i|; "loss" by L_i; "loss+" by L_i |g_i|
            (Sener and Koltun's variants [lib code]).
        applied_to: the gradients that the simplex weights a multiply. "rescaled", the default: d is the min-norm point
            of the rescaled gradients, which conflicts with no task (as in LibMTL [lib code]). "losses":
            d = sum_i a_i g_i with the original gradients, as in the code of Sener and Koltun and of Nash-MTL, which
            apply a to the losses [code]; d may conflict. Without a normalisation there is no difference.
        heads: factors of the task-specific gradients: "ones", the default, because the minimum often has weights of 0,
            which would stop a head; "weights", as in code that weights whole losses [code].
        outer_scale: "n-tasks": the weights times K, as in the Nash-MTL code [code]; "one", the default: the min-norm
            point.
        max_norm: clip d to this length after ``outer_scale``; None, the default: no clipping.

    Raises:
        LossError: "loss" or "loss+" with a loss that is not positive.
    """

    paper = ("https://doi.org/10.1016/j.crma.2012.03.014", "https://arxiv.org/abs/1810.04650")
    needs: ClassVar[Needs] = Needs.GRAMIAN

    normalize: str = choice("none", ("none", "l2", "loss", "loss+"))
    applied_to: str = choice("rescaled", ("rescaled", "losses"))
    heads: str = choice("ones", outer.HEADS)
    outer_scale: str = choice("one", outer.SCALES)
    max_norm: float | None = number(None, low=0.0, open_low=True)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; it depends on the normalisation, and on what the weights multiply."""
        out = {
            "permutation-equivariant",
            "conic-combination",
            "resume-equivalent",
            "parameter-rotation",
            "zero-only-if-stationary",
        }
        plain = self.outer_scale == "one" and self.max_norm is None
        if self.max_norm is None or self.degree == 0.0:
            out.add("positively-homogeneous")
        if self._on_losses:
            return frozenset(out | ({"simplex-weights"} if plain else set()))
        out |= {"non-conflicting", "strongly-stationary-zero"}
        if self.normalize in ("none", "loss"):
            out.add("pareto-stationary-zero")
        if self.normalize == "l2":
            out.add("scale-free")
        if plain and self.normalize in ("none", "l2"):
            out.add("matches-reference")
        if plain and self.normalize == "none":
            out |= {"simplex-weights", "duplicate-task", "descent-lower-bound"}
        return frozenset(out)

    @property
    def degree(self) -> float:  # type: ignore[override]
        """p in A(tJ) = t^p A(J)."""
        return 0.0 if self.normalize in ("l2", "loss+") and not self._on_losses else 1.0

    @property
    def _on_losses(self) -> bool:
        return self.applied_to == "losses" and self.normalize != "none"

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Solve for b, coefficients of the unit rows. The weights are b_i / |g_i| for the rescaled gradients, and b_i
        divided by the length of rescaled gradient i for the losses."""
        rows = _numpy.read(view)
        scaled = self.normalize in ("l2", "loss+")
        if rows.live is not None and (not scaled or not len(rows.live)):
            weights = np.ones(view.n_tasks)
            weights[rows.live] = 0.0
            weights = weights / weights.sum() if weights.any() else weights
            return self._answer(view, rows, weights, state, {"solver": "stationary: zero gradient"})
        inverse = self._inverse_lengths(view, rows)
        b, square, certificate = min_norm(rows.matrix, inverse)
        b, checked = without_conflict(rows.matrix, b)
        if "polished" in checked:
            b = b / float(inverse @ b)  # back onto the simplex
        diagnostics = {**certificate.diagnostics(), **checked, "squared_norm": square}
        weights = rows.scatter(inverse * b if self._on_losses else b / rows.norms)
        return self._answer(view, rows, weights, state, diagnostics)

    def _answer(
        self, view: StepView, rows: Cosines, weights: Array, state: State, diagnostics: dict[str, Any]
    ) -> Aggregation:
        """The answer with ``weights`` (K,), after ``outer_scale`` and ``max_norm``."""
        whole = weights * outer.scale(self.outer_scale, view.n_tasks)
        clipped = whole * outer.clip(rows.matrix, rows.norms * rows.gather(whole), self.max_norm)
        heads = outer.head_weights(self.heads, _numpy.tensor(whole))
        return Aggregation(_numpy.tensor(clipped), None, state, diagnostics, heads)

    def _inverse_lengths(self, view: StepView, rows: Cosines) -> Array:
        """(k,) 1 / length of each rescaled gradient."""
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
