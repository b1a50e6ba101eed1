"""Problems whose Pareto set is the preimage of a convex hull."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from mtlverify.problems.problem import Constants, Problem
from mtlverify.references.min_norm import min_norm


class HullProblem(Problem):
    """L_i(x) = h_i(|phi(x) - a_i|^2 / 2) with h_i increasing, phi onto R^M, and anchors a_i in R^M.

    The Pareto set is phi^-1(conv{a_i}). *Inside is optimal*: for y = sum_i w_i a_i with w in the simplex and any z,
    sum_i w_i (|z - a_i|^2 - |y - a_i|^2) = |z - y|^2, so z cannot be at least as near to every anchor unless z = y.
    *Outside is dominated*: the projection p of y onto the hull has <y - p, a - p> <= 0 for every a in it, hence
    |y - a_i|^2 >= |p - a_i|^2 + |y - p|^2 for all i. Distances are measured between phi(x) and the hull.
    """

    @property
    @abc.abstractmethod
    def anchors(self) -> Tensor:
        """(K, M)."""

    @abc.abstractmethod
    def image(self, x: Tensor) -> Tensor:
        """phi: (P,) -> (M,)."""

    @abc.abstractmethod
    def pull(self, x: Tensor, cotangents: Tensor) -> Tensor:
        """(K, M) -> (K, P): each row through the transposed derivative of phi at x."""

    @abc.abstractmethod
    def lift(self, y: Tensor) -> Tensor:
        """Some x with phi(x) = y."""

    def outer(self, half_squares: Tensor) -> tuple[Tensor, Tensor]:
        """h and its derivative, (K,) -> (K,), (K,); the identity unless overridden."""
        return half_squares, torch.ones_like(half_squares)

    def _gaps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gaps = self.image(x) - self.anchors
        return gaps, 0.5 * gaps.square().sum(1)

    def losses(self, x: Tensor) -> Tensor:
        """h(|phi(x) - a_i|^2 / 2)."""
        return self.outer(self._gaps(x)[1])[0]

    def jacobian(self, x: Tensor) -> Tensor:
        """By the chain rule."""
        gaps, half_squares = self._gaps(x)
        return self.pull(x, self.outer(half_squares)[1][:, None] * gaps)

    @property
    def optimal_values(self) -> Constants:
        """h(0)."""
        return tuple(self.outer(torch.zeros(self.shape[0], dtype=torch.float64))[0].tolist())

    def pareto_point(self, weights: Tensor) -> Tensor:
        """lift(sum_i w_i a_i)."""
        return self.lift(weights @ self.anchors)

    def _to_hull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.image(x)
        return y, torch.from_numpy(min_norm((self.anchors - y).numpy()).direction)

    def project(self, x: Tensor) -> Tensor:
        """lift of the nearest point of the hull."""
        y, step = self._to_hull(x)
        return self.lift(y + step)

    def distance(self, x: Tensor) -> float:
        """|phi(x) - hull|."""
        return float(self._to_hull(x)[1].norm())
