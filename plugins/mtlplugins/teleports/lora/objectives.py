"""The objectives of a LoRA teleport, and their gradients. [paper Eq. 8-10; the other estimators: choice]

Every objective is a function O of the displacement. :meth:`Objective.ascent` returns its value and its gradient with
respect to the trunk's parameters at the current point. The gradient takes all losses in O into account. (In the
authors' code the perturbed losses have no graph; the search there follows a random multiple of grad L_i.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtlcore import linalg
from mtlplugins.teleports.lora.field import Field, Vector, combine, inner, norm, weighted


class Objective(Protocol):
    """An objective to maximise."""

    def ascent(self, field: Field, generator: torch.Generator) -> tuple[float, Vector]:
        """O and its gradient at the current point."""


def balance(blocks: list[Tensor]) -> Tensor:
    """R_i = K (1 - |g_i| / sum_j |g_j|), (K,): larger for tasks with small gradients. [code]"""
    sizes = norms(blocks)
    total = sizes.sum()
    k = sizes.shape[0]
    return k * (1.0 - sizes / total) if bool(total > 0.0) else torch.full_like(sizes, k - 1.0)


def norms(blocks: list[Tensor]) -> Tensor:
    """|g_i|, (K,), from the (K, numel) blocks."""
    return torch.stack([b.double().square().sum(dim=1) for b in blocks]).sum(dim=0).sqrt()


@dataclass
class Sharpness:
    """L_g = (1/K) sum_i R_i S_i / delta, S_i = max_s |L_i(theta + eps_s) - L_i(theta)|, s = 1..n. [paper]

    Args:
        factor: (K,) R_i; in the relative form divided by |g_i*|, so that the scales of the tasks do not matter.
        samples: n. delta: radius of the sphere. per_tensor: the noise of each tensor has norm delta [code]; False: the
            noise of the whole vector has [paper's wording]. heads: whether the heads are perturbed, too [code].
    """

    factor: Tensor
    samples: int
    delta: float
    per_tensor: bool
    heads: bool = False

    def ascent(self, field: Field, generator: torch.Generator) -> tuple[float, Vector]:
        """n forward passes, then one backward pass for each sample that is the largest for some task."""
        k = len(field.tasks)
        here = field.losses()
        here_values = field.current()
        perturbed = [*here_values, *(field.heads() if self.heads else [])]
        noises = [self._noise(perturbed, generator) for _ in range(self.samples)]
        changes = torch.stack([self._losses_at(field, here_values, e) - here for e in noises])
        largest = changes.abs().argmax(dim=0)
        signs = changes.gather(0, largest[None]).sign()[0]
        coefficient = self.factor.to(here) * signs / (k * self.delta)
        _, (at_start,) = field.gradients(coefficient)
        terms: list[tuple[float, Vector]] = [(-1.0, at_start)]
        for s in largest.unique().tolist():
            field.place(here_values, noises[s])
            _, (found,) = field.gradients(torch.where(largest == s, coefficient, torch.zeros_like(coefficient)))
            terms.append((1.0, found))
        field.place(here_values)
        value = float((coefficient * changes.gather(0, largest[None])[0]).sum())
        return value, combine(terms)

    def _noise(self, like: Vector, generator: torch.Generator) -> Vector:
        raw = [torch.randn(p.shape, generator=generator, device="cpu").to(p) for p in like]
        if self.per_tensor:
            return [self.delta * r / r.norm() if r.numel() else r for r in raw]
        length = norm(raw)
        return [self.delta * r / length for r in raw]

    @staticmethod
    def _losses_at(field: Field, values: Vector, shift: Vector) -> Tensor:
        field.place(values, shift)
        losses = field.losses()
        field.place(values)
        return losses


@dataclass
class GradientNorm:
    """L_g = (1/K) sum_i R_i |g_i|: sharpness to first order, without sampling. [choice]

    Args:
        factor: (K,) as in :class:`Sharpness`.
        exact: True: double backward. False: grad |g_i| = H_i g_i / |g_i| by one more gradient at theta + h g_i / |g_i|.
    """

    factor: Tensor
    exact: bool

    def ascent(self, field: Field, generator: torch.Generator) -> tuple[float, Vector]:
        """Exact: K + 1 backward passes. Otherwise K forward and 2K backward passes."""
        k = len(field.tasks)
        eye = torch.eye(k, dtype=torch.float64, device=field.reference.device)
        factor = self.factor.to(eye)
        if self.exact:
            _, rows = field.gradients(*eye, graph=True)
            sizes = torch.stack([torch.stack([g.double().square().sum() for g in row]).sum() for row in rows])
            alive = sizes.detach() > 0.0
            value = (factor[alive] * sizes[alive].sqrt()).sum() / k
            return float(value.detach()), field.backward(value)
        here = field.current()
        _, blocks = field.rows()
        sizes = norms(blocks)
        terms: list[tuple[float, Vector]] = [(0.0, here)]
        for i in range(k):
            if sizes[i] > 0.0:
                row = weighted(eye[i], blocks, here)
                unit = combine([(1 / float(sizes[i]), row)])
                terms.append((float(factor[i]) / k, curvature(field, here, eye[i], row, unit)))
        return float((factor * sizes).sum()) / k, combine(terms)


@dataclass
class Conflict:
    """cos(g_w, g_0): g_0 is the mean gradient, and g_w = sum_i w_i g_i / |g_i| is dominated by the tasks with the
    smallest cosines.

    w = softmax(-cos(g_i, g_0) / temperature) is held constant: this is a soft minimum of the cosines, and it costs two
    curvature products for any number of tasks. It does not depend on scale. [choice]

    Args:
        exact: True: double backward. False: finite differences.
        temperature: temperature of the soft minimum.
    """

    exact: bool
    temperature: float = 0.05

    def ascent(self, field: Field, generator: torch.Generator) -> tuple[float, Vector]:
        """One pass of task gradients, then two gradients (or one double backward pass)."""
        return self.ascent_from(field, field.rows()[1])

    def ascent_from(self, field: Field, blocks: list[Tensor]) -> tuple[float, Vector]:
        """The same when the task gradients at the current point are known."""
        here = field.current()
        worst, mean = self.weights(blocks)
        g_w, g_0 = (weighted(c, blocks, here) for c in (worst, mean))
        n_w, n_0 = norm(g_w), norm(g_0)
        if n_w == 0.0 or n_0 == 0.0:
            return 0.0, combine([(0.0, here)])
        cos = inner(g_w, g_0) / (n_w * n_0)
        if self.exact:
            _, (a, b) = field.gradients(worst, mean, graph=True)
            dots = [
                torch.stack([(x.double() * y.double()).sum() for x, y in zip(p, q)]).sum()
                for p, q in ((a, b), (a, a), (b, b))
            ]
            return cos, field.backward(dots[0] / (dots[1] * dots[2]).sqrt())
        along_w = combine([(1 / (n_0 * n_w), g_0), (-cos / n_w**2, g_w)])
        along_0 = combine([(1 / (n_w * n_0), g_w), (-cos / n_0**2, g_0)])
        return cos, combine(
            [(1.0, curvature(field, here, worst, g_w, along_w)), (1.0, curvature(field, here, mean, g_0, along_0))]
        )

    def weights(self, blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(K,) coefficients of the task gradients in g_w and in g_0."""
        gram = torch.stack([linalg.gramian(b) for b in blocks]).sum(dim=0)
        sizes = gram.diagonal().clamp_min(0.0).sqrt()
        k = sizes.shape[0]
        mean = torch.full_like(sizes, 1.0 / k)
        size = gram.mean().clamp_min(0.0).sqrt()
        alive = sizes > 0.0
        if not bool(alive.any()) or not bool(size > 0.0):
            return torch.zeros_like(sizes), mean
        cos = gram.mean(dim=0) / (sizes * size)
        soft = torch.softmax(torch.where(alive, -cos / self.temperature, torch.full_like(cos, -torch.inf)), dim=0)
        return torch.where(alive, soft / sizes, torch.zeros_like(sizes)), mean


def curvature(field: Field, here: Vector, weights: Tensor, gradient: Vector, direction: Vector) -> Vector:
    """H d for L = sum_i w_i L_i: (grad L(theta + h d) - grad L(theta)) / h, one gradient."""
    h = field.small_step(direction)
    if h == 0.0:
        return combine([(0.0, here)])
    field.place(here, [h * d for d in direction])
    _, (there,) = field.gradients(weights)
    field.place(here)
    return combine([(1 / h, there), (-1 / h, gradient)])
