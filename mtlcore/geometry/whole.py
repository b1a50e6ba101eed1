"""The whole step, with momentum and weight decay, in the cone of moves that raise no task's loss to first order.

The optimizer is about to subtract m(d) from the parameters: D d, and what momentum and decay add whatever the method
says. Fresh gradients can be added to the method's d0, in amounts y >= 0, until J m >= 0. Coordinate by coordinate m is
a function of d. Where it grows, it is the slope of a convex function F, and

    d = d0 + J^T y,   y = argmin F(d0 + J^T y) over y >= 0,    has   J m(d) >= 0,  <y, J m(d)> = 0.

K unknowns. Under SGD F is quadratic, and m(d) is, of all moves x with Jx >= 0, the nearest to m(d0) in the norm
<x, D^-1 x>. Mean squares are renewed by d itself before Adam, RMSprop and Adagrad divide by them: Newton's method
solves the problem with the slopes where d is, in a few rounds. [ours; docs/explanation/step.md]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlcore import linalg
from mtlcore.distributed.dtensors import whole
from mtlcore.errors import NonFiniteError
from mtlcore.geometry.ahead import ahead
from mtlcore.geometry.cone import multipliers
from mtlcore.geometry.metric import InMetric
from mtlcore.geometry.moves import moves
from mtlcore.gradients.task_gradients import Answer, TaskGradients
from mtlcore.trajectory import Optimizers

ROUNDS = 8
"""Most renewals of D in a step. [choice]"""
RESOLUTION = 2.0**-20
"""A cosine above minus this, in the metric, is none. [choice]"""
SEEN = 2.0**-16
"""The same for the cosine in the Euclidean metric, where the optimizer's D may be far from it. [choice]"""
LITTLE = 2.0**-8
"""A move that is shorter than this share of the method's own (float32: the root of it) is what rounding leaves where
gradients nearly cancel, and is judged as if it were as long. [choice]"""
FLAT = 0.1
"""Least slope, as a share of D, with which a coordinate counts: beyond, a step of Newton's would leap. [choice]"""


class Settled(NamedTuple):
    """
    Args:
        answer: for the plain rows: the method's, and what was added to it.
        added: (k,) float64, y, on the processor.
        notes: for the report. ``step_cosine``: the smallest of <g_i, m> / (|g_i| |m|) for the move m that will be made;
            ``step_before``: the same without y; ``step_rounds``: of the search for y; ``step_safe``: whether the move
            raises no task's loss to first order, up to rounding.
    """

    answer: Answer
    added: Tensor
    notes: dict[str, Any]


class _Trial(NamedTuple):
    added: Tensor
    direction: Tensor
    moved: Tensor
    diagonal: Tensor
    slope: Tensor
    gains: Tensor


@torch.no_grad()
def settled(
    found: TaskGradients,
    plain: TaskGradients,
    answer: Answer,
    optimizer: Optimizers,
    parameters: Sequence[Tensor],
    scale: float | None = None,
) -> Settled:
    """
    Args:
        found: what the method saw.
        plain: the same in the Euclidean metric.
        answer: the method's, to ``found``.
        optimizer, parameters: of the run, before the step.
        scale: of a ``GradScaler``, by which ``.grad`` will be divided.

    Raises:
        ConfigurationError: see :func:`mtlcore.geometry.moves.moves`.
        NonFiniteError: the optimizer's state is NaN or infinite.
    """
    rows, found_moves = plain.rows(), moves(optimizer, parameters, 'metric="step"')
    answer = found.plain(answer) if isinstance(found, InMetric) else answer
    first = answer.direction if answer.weights is None else linalg.combine(rows, answer.weights)
    assert first is not None
    waiting = _waiting(parameters, scale).to(rows)

    def trial(added: Tensor) -> _Trial:
        direction = first if not bool(added.any()) else first + linalg.combine(rows, added).to(first)
        moved, diagonal, slope = ahead(found_moves, parameters, waiting + direction)
        return _Trial(added, direction, moved, diagonal, slope, linalg.across(rows, moved[None]).squeeze(1).cpu())

    here = start = trial(torch.zeros(len(rows), dtype=torch.float64))
    if not math.isfinite(float(start.gains.sum())):
        raise NonFiniteError('metric="step": the optimizer is about to make a move that is NaN or infinite.')
    metric, plain_metric = _Judge(rows, start, start.diagonal), _Judge(rows, start, torch.ones_like(start.diagonal))
    best, rounds = start, 0
    while rounds < ROUNDS and metric.harm(best) > RESOLUTION:
        rounds += 1
        y = _multipliers(rows, here)
        if y is None:
            break
        here = trial(y)
        best = min(best, here, key=metric.harm)
    notes = {
        "step_cosine": -plain_metric.harm(best),
        "step_before": -plain_metric.harm(start),
        "step_rounds": rounds,
        "step_safe": metric.harm(best) <= RESOLUTION and plain_metric.harm(best) <= SEEN,
    }
    return Settled(_added(answer, best), best.added, notes)


def _multipliers(rows: Tensor, here: _Trial) -> Tensor | None:
    """y for the move as it is, to first order, around ``here``."""
    gram = linalg.gramian(rows * torch.maximum(here.slope, FLAT * here.diagonal).sqrt()).cpu()
    return multipliers(gram, here.gains - gram @ here.added)


def _added(answer: Answer, best: _Trial) -> Answer:
    if not bool(best.added.any()):
        return answer
    if answer.weights is not None:
        return Answer(
            answer.weights + best.added.to(answer.weights), None, answer.head_weights, answer.feature_gradient
        )
    return Answer(None, best.direction, answer.head_weights, answer.feature_gradient)


class _Judge:
    """How much a move harms: minus the smallest gain, in units of |g_i|_D |m|_(1/D), which are free of the units of
    parameters if D is the optimizer's.

    Args:
        rows: (k, P) J.
        start: the method's own move. One that is much shorter is rounding, and is judged by a share of this length.
        diagonal: (P,) D.
    """

    def __init__(self, rows: Tensor, start: _Trial, diagonal: Tensor) -> None:
        self._diagonal = diagonal
        self._norms = torch.linalg.vector_norm(rows * diagonal.sqrt(), dim=1, dtype=torch.float64).cpu()
        self._least = (LITTLE if rows.dtype == torch.float64 else LITTLE**0.5) * self._length(start.moved)

    def _length(self, moved: Tensor) -> float:
        squares = torch.where(self._diagonal > 0.0, moved.square() / self._diagonal, torch.zeros_like(moved))
        return float(squares.sum(dtype=torch.float64).sqrt())

    def harm(self, trial: _Trial) -> float:
        """Of one move; negative where every task gains. 0 where there is no gradient, or no move."""
        sizes = self._norms * max(self._length(trial.moved), self._least)
        alive = sizes > 0.0
        return float((-trial.gains[alive] / sizes[alive]).max()) if bool(alive.any()) else 0.0


def _waiting(parameters: Sequence[Tensor], scale: float | None) -> Tensor:
    """(P,) what is in ``.grad`` already, and will be a part of the gradient."""
    grads = [whole(torch.zeros_like(p) if p.grad is None else p.grad.to_dense()) for p in parameters]
    return torch.cat([g.flatten() for g in grads]) / (scale or 1.0)
