"""A cheap search: steps along the surface on which every task keeps its loss.

Invariance is a constraint here, not a penalty. All displacements are B A with fixed rows of A: the leading right
singular vectors of the gradient of the objective, so that the best ascent direction of rank r is among them. In the
coordinates B, with the relative task gradients as rows of J (K, n):

    predict   x <- x + t (I - J^+ J) h        h the objective's gradient: no loss changes to first order
    correct   x <- x - J^+ c(x)               c the relative loss changes: a Newton step back, forward passes only

t starts at a predicted gain of ``reach`` and shrinks like sqrt(drift / measured drift), because the drift of a tangent
step is of second order. A step costs one pass of task gradients, what the objective needs, and a few forward passes.
[choice]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlplugins.teleports.lora.field import Field, Vector
from mtlplugins.teleports.lora.objectives import Conflict, Objective
from mtlplugins.teleports.lora.prospect import Progress


def search(
    field: Field,
    weights: Sequence[str],
    objective: Objective,
    *,
    rank: int,
    steps: int,
    drift: float,
    reach: float,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The displacement, and diagnostics.

    Args:
        weights: names of the weights that move.
        drift: largest relative change of a task's loss on the trigger batch.
        reach: predicted gain of the objective that a step aims at first.
    """
    chart: _Chart | None = None
    log = {"tangent_steps": 0.0, "objective_before": float("nan"), "objective": float("nan")}
    for step in range(steps):
        losses, blocks = (field.reference, field.rows_at_start) if step == 0 else field.rows()
        value, ascent = (
            objective.ascent_from(field, blocks)
            if isinstance(objective, Conflict | Progress)
            else objective.ascent(field, generator)
        )
        log["objective_before" if step == 0 else "objective"] = value
        if chart is None:
            chart = _Chart(field, weights, ascent, rank, generator)
            x = torch.zeros(chart.size, dtype=torch.float64, device=losses.device)
        h = chart.pull(ascent)
        surface = _Surface(chart.pull_rows(blocks) / field.unit[:, None])
        tangent = surface.project(h)
        slope = float(tangent.square().sum())
        if slope <= 1e-10 * float(h.square().sum()):
            break  # every direction that helps is spoken for by some task's loss
        found = _line_search(field, chart, surface, x, tangent, min(reach / slope, chart.farthest / slope**0.5), drift)
        if found is None:
            break
        x = found
        log["tangent_steps"] = step + 1.0
    if chart is None or log["tangent_steps"] == 0.0:
        field.displace({})
        return {}, log
    displacement = chart.push(x)
    field.displace({})
    return displacement, log


def _line_search(
    field: Field, chart: _Chart, surface: _Surface, x: Tensor, tangent: Tensor, t: float, drift: float
) -> Tensor | None:
    """The first point within ``drift``; None if four trials find none."""
    for _ in range(4):
        point = x + t * tangent
        field.displace(chart.push(point))
        change = field.relative_change()
        worst = float(change.abs().max())
        if worst <= drift:
            return point
        if worst == worst and worst < 10 * drift:
            corrected = point - surface.back(change)
            field.displace(chart.push(corrected))
            if float(field.relative_change().abs().max()) <= drift:
                return corrected
        t *= min(max(0.8 * (drift / worst) ** 0.5, 0.1), 0.7) if worst == worst and worst < float("inf") else 0.1
    return None


class _Surface:
    """The tangent space of {x : no loss changes}, from the relative task gradients J (K, n)."""

    def __init__(self, jacobian: Tensor) -> None:
        self._jacobian = jacobian
        norms = jacobian.norm(dim=1, keepdim=True)
        self._norms = torch.where(norms > 0.0, norms, torch.ones_like(norms))
        self._rows = jacobian / self._norms
        self._inverse = torch.linalg.pinv(self._rows @ self._rows.T, rtol=1e-10, hermitian=True)

    def project(self, h: Tensor) -> Tensor:
        """(I - J^+ J) h."""
        projected: Tensor = h - self._rows.T @ (self._inverse @ (self._rows @ h))
        return projected

    def back(self, change: Tensor) -> Tensor:
        """J^+ c: the shortest step that cancels the relative changes c, to first order."""
        step: Tensor = self._rows.T @ (self._inverse @ (change / self._norms[:, 0]))
        return step


class _Chart:
    """Coordinates of the low-rank displacements: x = (B_1, B_2, ...) flattened, each in units of its weight's size."""

    def __init__(
        self, field: Field, weights: Sequence[str], ascent: Vector, rank: int, generator: torch.Generator
    ) -> None:
        at = {n: i for i, n in enumerate(field.names)}
        self._weights = [(n, at[n]) for n in weights]
        self._shapes = {n: field.start[i].shape for n, i in self._weights}
        self._bases = [_leading_rows(_matrix(ascent[i]), rank, generator) for _, i in self._weights]
        sizes = torch.stack([field.start[i].double().square().mean().sqrt() for _, i in self._weights])
        typical = sizes.mean() if bool(sizes.any()) else torch.ones_like(sizes[0])
        self._units = torch.where(sizes > 0.0, sizes, typical)
        self._rows = [field.start[i].shape[0] for _, i in self._weights]
        self.size = sum(n * len(a) for n, a in zip(self._rows, self._bases))
        self.farthest = 0.1 * sum(field.start[i].numel() for _, i in self._weights) ** 0.5
        """Largest step: a tenth of the size of the weights."""

    def pull(self, gradient: Vector) -> Tensor:
        """Gradient with respect to the weights -> with respect to x."""
        return self.pull_rows([g.reshape(1, -1) for g in gradient])[0]

    def pull_rows(self, blocks: Sequence[Tensor]) -> Tensor:
        """(K, numel) blocks -> (K, n)."""
        parts = []
        for (_, i), basis, unit, rows in zip(self._weights, self._bases, self._units, self._rows):
            block = blocks[i].view(len(blocks[i]), rows, -1)
            parts.append((block @ basis.T.to(block)).flatten(1).double() * unit)
        return torch.cat(parts, dim=1)

    def push(self, x: Tensor) -> dict[str, Tensor]:
        """x -> displacement of every weight."""
        found = {}
        sizes = [n * len(a) for n, a in zip(self._rows, self._bases)]
        for (name, _), basis, unit, rows, part in zip(
            self._weights, self._bases, self._units, self._rows, x.split(sizes)
        ):
            delta = unit * part.view(rows, -1) @ basis.double()
            found[name] = delta.to(basis.dtype).view(self._shapes[name])
        return found


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def _leading_rows(matrix: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """(r, columns), orthonormal: the leading right singular vectors, by two rounds of randomised subspace iteration."""
    rank = min(rank, *matrix.shape)
    exact = matrix.double()
    probe = torch.randn(exact.shape[0], rank, generator=generator, dtype=torch.float64, device="cpu").to(exact.device)
    basis = torch.linalg.qr(exact.T @ probe)[0]
    for _ in range(2):
        basis = torch.linalg.qr(exact.T @ (exact @ basis))[0]
    rows: Tensor = basis.T.to(matrix.dtype)
    return rows
