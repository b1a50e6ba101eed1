"""``sdmgrad``: the min-norm point regularised towards the mean gradient, from independent batches."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import flag, integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import rows as batches_of
from mtlplugins.aggregators import _numpy
from mtlplugins.solvers.certificate import EPS
from mtlplugins.solvers.cosines import Array, cosines
from mtlplugins.solvers.min_norm import min_norm
from mtlplugins.solvers.simplex import project_simplex


@dataclasses.dataclass(frozen=True)
class SDMGrad(Aggregator):
    """Xiao, Ban and Ji 2023 [official code]: with g_0 the mean gradient,

        w = argmin over the simplex of |J'w + lambda g_0|^2 / 2 ,     d = (J'w + lambda g_0) / (1 + lambda) .

    With ``double_sampling`` (the default [official code]) a step takes three independent batches. The first gives d.
    The others give A = J_2 J_3' and the unbiased gradient A w + lambda A u, u = 1/K, of the problem. A is divided by
    the square of the mean of sqrt(A_ii); then ``iterations`` steps of projected SGD with momentum are made on the
    simplex, from the w of the last step. Without double sampling there is one batch, and w is the exact solution:
    because w sums to 1, it solves the min-norm problem of the rows g_i + lambda g_0, whose Gramian follows from G.

    Proved (one batch): lambda = 0 is MGDA, lambda -> infinity is the mean; weights are on the simplex. With lambda = 0
    there is no conflict; with lambda > 0 d may conflict with a task. The w of a task that is missing from the second or
    third batch does not change. Unlike in the code, 1e-8 is not added to the scale; if the scale is zero, w does not
    change.
    Cost: three forward and backward passes and the rows; without double sampling one pass and the Gramian.

    Args:
        lambda_: lambda; 0.3 on NYUv2 and Cityscapes [official scripts]; the default of the authors' class is 0.6.
        double_sampling: three batches per step, or one.
        iterations: SGD steps on w per step [official code: 20].
        lr: step size of these steps; 10 [official code], 5 in LibMTL [lib code].
        momentum: momentum of these steps [official code: 0.5].
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.18409"

    lambda_: float = number(0.3, low=0.0)
    double_sampling: bool = flag(True)
    iterations: int = integer(20, low=1)
    lr: float = number(10.0, low=0.0, log=True)
    momentum: float = number(0.5, low=0.0, high=1.0, open_high=True)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Products of two batches' gradients need the gradients themselves."""
        return Needs.JACOBIAN if self.double_sampling else Needs.GRAMIAN

    @property
    def batches(self) -> int:  # type: ignore[override]
        """Three, or one."""
        return 3 if self.double_sampling else 1

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; more for the exact solution than for some steps towards it."""
        out = {
            "permutation-equivariant",
            "positively-homogeneous",
            "conic-combination",
            "simplex-weights",
            "parameter-rotation",
            "resume-equivalent",
        }
        if not self.double_sampling:
            out |= {"matches-reference", "zero-only-if-stationary"}
            if self.lambda_ == 0.0:
                out |= {"non-conflicting", "pareto-stationary-zero", "strongly-stationary-zero"}
        return frozenset(out)

    def init(self, n_tasks: int) -> State:
        """The weights w (K,), with double sampling."""
        uniform = torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64, device="cpu")
        return {"weights": uniform} if self.double_sampling else {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """(w + lambda / K) / (1 + lambda)."""
        uniform, k = np.full(view.n_tasks, 1.0 / view.n_tasks), view.n_tasks
        if not self.double_sampling:
            w, notes = self._exact(view)
        else:
            listed = list(view.task_index)
            full = state["weights"].clone()
            start = full.numpy()[listed]
            start = start / start.sum() if start.sum() > 0.0 else uniform
            w, notes = self._sampled(view, start)
            total = float(full.numpy()[listed].sum())  # what the absent tasks have stays theirs
            full.numpy()[listed] = w * (total if total > 0.0 else 1.0) if len(full) != k else w
            state = {"weights": full}
        weights = (w + self.lambda_ * uniform) / (1.0 + self.lambda_)
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=notes)

    def _exact(self, view: StepView) -> tuple[Array, dict[str, object]]:
        gram, k = view.gramian.numpy(), view.n_tasks
        mean = gram.mean(axis=0)
        shifted = gram + self.lambda_ * (mean[:, None] + mean[None, :]) + self.lambda_**2 * mean.mean()
        shifted = 0.5 * (shifted + shifted.T)
        found = cosines(shifted)
        if found.live is not None:  # a row of zeros is the min-norm point
            w = np.ones(k)
            w[found.live] = 0.0
            return w / w.sum(), {"solver": "stationary: zero row"}
        if self.lambda_ > 0.0:
            # Rounding of the longest row is in every entry; it may be all there is of a row that the shift cancels. A
            # ridge of its size keeps the matrix that of some rows.
            shifted.flat[:: k + 1] += 4.0 * k * EPS * float(np.abs(gram).max()) * (1.0 + self.lambda_) ** 2
            found = cosines(shifted)
        b, square, certificate = min_norm(found.matrix, 1.0 / found.norms)
        w = b / found.norms
        return w / w.sum(), {**certificate.diagnostics(), "squared_norm": square}

    def _sampled(self, view: StepView, w: Array) -> tuple[Array, dict[str, object]]:
        (left, one), (right, two) = batches_of.other(view, 0), batches_of.other(view, 1)
        a = batches_of.cross(left, right)
        both = one & two
        scale = float(np.sqrt(np.maximum(a.diagonal(), 0.0))[both].mean()) if both.any() else 0.0
        if scale == 0.0:
            return w, {"kept": "the two batches say nothing about the weights"}
        a = a / scale / scale
        pull, velocity = self.lambda_ * a.mean(axis=1), np.zeros_like(w)
        share = float(w[both].sum())
        for step in range(self.iterations):
            gradient = a @ w + pull
            velocity = self.momentum * velocity + gradient if step else gradient
            w = w.copy()
            w[both] = project_simplex(w[both] - self.lr * velocity[both], share)
        return w, {"scale": scale}
