"""The whole step, with momentum and weight decay, in the cone of moves that raise no task's loss to first order.

The optimizer is about to subtract m(d) = D d + h from the parameters: h is what momentum and decay add, whatever the
method says of d. Fresh gradients can be added to the method's d0 in amounts y >= 0 so that J m >= 0: for

    d = d0 + J^T y,   y = argmin 1/2 y'(J D J^T)y + y'J(D d0 + h) over y >= 0,

m(d) is, of all moves x with Jx >= 0, the nearest to D d0 + h in the norm <x, D^-1 x>. [ours; docs/explanation/step.md]

Mean squares are renewed by d itself before the optimizer divides by them, so that D and h depend on d. They are taken
where d is, and y anew, in a few rounds; what a task still loses in one round is asked for on top in the next, which
takes two or three rounds where the plain repetition takes a dozen [measured]. Under SGD one round is exact. What is
reported is the move that the optimizer will make of the d that is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlcore import linalg
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
"""A cosine above minus this is none: what float32 leaves of an inner product that is 0. [choice]"""


class Settled(NamedTuple):
    """
    Args:
        answer: for the plain rows: the method's, and what was added to it.
        added: (k,) float64, y, on the processor.
        notes: for the report. ``step_cosine``: the smallest of <g_i, m> / (|g_i| |m|) for the move m that will be made;
            ``step_before``: the same without y; ``step_rounds``: of the search for y; ``step_safe``: whether the move
            raises no task's loss to first order.
    """

    answer: Answer
    added: Tensor
    notes: dict[str, Any]


class _Trial(NamedTuple):
    added: Tensor
    direction: Tensor
    moved: Tensor
    diagonal: Tensor
    gains: Tensor
    cosine: float


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
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)

    def trial(added: Tensor) -> _Trial:
        direction = first if not bool(added.any()) else first + linalg.combine(rows, added).to(first)
        moved, diagonal = ahead(found_moves, parameters, waiting + direction)
        gains = linalg.applied(rows, moved)
        return _Trial(added, direction, moved, diagonal, gains, _smallest(gains, norms, moved))

    here = start = trial(torch.zeros(len(rows), dtype=torch.float64))
    if not math.isfinite(float(start.gains.sum())):
        raise NonFiniteError('metric="step": the optimizer is about to make a move that is NaN or infinite.')
    best, rounds, missing = start, 0, torch.zeros_like(start.added)
    while rounds < ROUNDS and best.cosine < -RESOLUTION:
        rounds += 1
        if rounds > 1:
            missing = missing + (-here.gains.cpu()).clamp_min(0.0)
        y = _multipliers(rows, here, missing)
        if y is None:
            break
        here = trial(y)
        best = max(best, here, key=lambda t: t.cosine)
    notes = {
        "step_cosine": best.cosine,
        "step_before": start.cosine,
        "step_rounds": rounds,
        "step_safe": best.cosine >= -RESOLUTION,
    }
    return Settled(_added(answer, best), best.added, notes)


def _multipliers(rows: Tensor, here: _Trial, missing: Tensor) -> Tensor | None:
    """y for D and h as they are at ``here``, so that task i gains at least ``missing[i]``."""
    gram = linalg.gramian(rows * here.diagonal.sqrt()).cpu()
    # D d0 + h = m(d) - D (d - d0), and J D (d - d0) = G y.
    return multipliers(gram, here.gains.cpu() - gram @ here.added - missing)


def _added(answer: Answer, best: _Trial) -> Answer:
    if not bool(best.added.any()):
        return answer
    if answer.weights is not None:
        return Answer(
            answer.weights + best.added.to(answer.weights), None, answer.head_weights, answer.feature_gradient
        )
    return Answer(None, best.direction, answer.head_weights, answer.feature_gradient)


def _smallest(gains: Tensor, norms: Tensor, moved: Tensor) -> float:
    """Of the cosines of the gradients with the move; 0 where there are none."""
    sizes = norms * torch.linalg.vector_norm(moved, dtype=torch.float64)
    alive = sizes > 0.0
    return float((gains[alive] / sizes[alive]).min()) if bool(alive.any()) else 0.0


def _waiting(parameters: Sequence[Tensor], scale: float | None) -> Tensor:
    """(P,) what is in ``.grad`` already, and will be a part of the gradient."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
    return torch.cat([g.flatten() for g in grads]) / (scale or 1.0)
