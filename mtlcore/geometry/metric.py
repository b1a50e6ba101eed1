"""A method in the metric in which the optimizer moves parameters.

With D, the diagonal by which the optimizer is about to multiply the gradient, the method sees J sqrt(D), and so the
Gramian J D J^T. From weights w comes d = J^T w; from a direction u comes d = D^{-1/2} u. Then <g_i, D d> is the inner
product of row i of J sqrt(D) with sqrt(D) d, so that what the method promises of its rows and direction holds of the
gradients and the move D d. [derived; docs/explanation/step.md]

D is read *before* the step. Coordinates of which the optimizer knows nothing (no gradient so far) get the mean of the
others, and 1 where nothing at all is known, as in the first step. [choice]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.contracts import StepView
from mtlcore.errors import NonFiniteError
from mtlcore.geometry.moves import moves
from mtlcore.gradients.task_gradients import Answer, TaskGradients
from mtlcore.trajectory import Optimizers

EUCLIDEAN = "euclidean"
STEP = "step"
METRICS = (EUCLIDEAN, "optimizer", STEP)
Curvature = Callable[[StepView, Tensor], Tensor]
"""The service behind ``view.curvature``."""


@torch.no_grad()
def diagonal(optimizer: Optimizers, parameters: Sequence[Tensor], metric: str) -> Tensor | None:
    """sqrt(D), (P,), up to a factor for all coordinates; None where it is 1 for all of them. Messages name ``metric``.

    Raises:
        ConfigurationError: see :func:`mtlcore.geometry.moves.moves`.
        NonFiniteError: the optimizer's state is NaN or infinite.
    """
    found = moves(optimizer, parameters, f'metric="{metric}"')
    largest = max(m.factor for m in found)
    factors = [m.factor / largest if largest > 0.0 else 1.0 for m in found]
    roots = [m.known(p) for m, p in zip(found, parameters)]
    if all(r is None for r in roots) and all(f == 1.0 for f in factors):
        return None
    dtype = linalg.row_dtype(parameters)
    pieces = [
        torch.ones(p.numel(), dtype=dtype, device=p.device) if r is None else r.flatten().to(dtype)
        for p, r in zip(parameters, roots)
    ]
    divisor = torch.cat(pieces)
    known = divisor > 0.0
    inverse = torch.where(known, divisor.reciprocal(), torch.zeros_like(divisor))
    typical = inverse.sum() / known.sum().clamp_min(1)
    inverse = torch.where(known, inverse, typical if bool(known.any()) else torch.ones_like(typical))
    if not bool(torch.isfinite(inverse).all()):
        raise NonFiniteError(f'metric="{metric}": the state of the optimizer is NaN or infinite.')
    sizes = torch.tensor([p.numel() for p in parameters], device=inverse.device)
    scale = torch.tensor(factors, dtype=dtype, device=inverse.device).repeat_interleave(sizes)
    return (inverse * scale).sqrt()


class InMetric(TaskGradients):
    """Task gradients as the optimizer's metric has them.

    Args:
        inner: as the plan found them; it must have rows.
        root: sqrt(D), (P,).
    """

    def __init__(self, inner: TaskGradients, root: Tensor) -> None:
        self._inner = inner
        self._root = root
        self._rows: Tensor | None = None
        self.heads = inner.heads

    def rows(self) -> Tensor:
        """(k, P), J sqrt(D)."""
        if self._rows is None:
            self._rows = self._inner.rows() * self._root
        return self._rows

    def gramian(self) -> Tensor:
        """(k, k) float64, J D J^T."""
        return linalg.gramian(self.rows())

    def write(self, answer: Answer) -> None:
        """Weights combine the plain rows; a direction is taken back from sqrt(D) d to d (0 where D is)."""
        self._inner.write(self.plain(answer))

    def plain(self, answer: Answer) -> Answer:
        """The same answer to the plain rows."""
        direction = answer.direction
        if direction is not None:
            root = self._root.to(direction.device)
            direction = torch.where(root > 0.0, direction / root, torch.zeros_like(direction))
        return Answer(answer.weights, direction, answer.head_weights, answer.feature_gradient)

    def curved(self, service: Curvature) -> Curvature:
        """Products with sqrt(D) H sqrt(D): the Hessians over the coordinates in which the rows are J sqrt(D)."""

        def products(view: StepView, vectors: Tensor) -> Tensor:
            root = self._root.to(vectors)
            return service(view, vectors * root) * root

        return products


def in_metric_of(found: TaskGradients, service: Curvature | None) -> Curvature | None:
    """The service over the coordinates of the rows of ``found``."""
    return found.curved(service) if isinstance(found, InMetric) and service is not None else service


def in_metric(
    inner: TaskGradients, optimizer: Optimizers, parameters: Sequence[Tensor], metric: str = "optimizer"
) -> TaskGradients:
    """The same in the optimizer's metric; ``inner`` itself where that is the Euclidean one, bit for bit."""
    root = diagonal(optimizer, parameters, metric)
    return inner if root is None else InMetric(inner, root)
