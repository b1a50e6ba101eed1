"""The move that an optimizer is about to make of a gradient, exactly, before it makes it.

The formulas are those of torch's SGD, Adam, AdamW, RMSprop and Adagrad, with momentum, weight decay (coupled or not)
and the renewal of mean squares by the gradient itself. Nothing of the optimizer is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlcore.distributed.dtensors import whole
from mtlcore.geometry.moves import ADAM, Move


class Ahead(NamedTuple):
    """Of all parameters in a row.

    Args:
        moved: (P,) what will be subtracted from the parameters.
        diagonal: (P,) D as it is applied: how much of a fresh gradient is in ``moved``, coordinate by coordinate, with
            the mean squares renewed by this gradient.
        slope: (P,) derivative of ``moved`` in its own coordinate of the gradient: D, less what the renewal takes back.
    """

    moved: Tensor
    diagonal: Tensor
    slope: Tensor


@torch.enable_grad()
def ahead(moves: Sequence[Move], parameters: Sequence[Tensor], gradient: Tensor) -> Ahead:
    """
    Args:
        moves: one per parameter, from options and state before the step.
        parameters: before the step.
        gradient: (P,) as ``.grad`` will have it when the optimizer moves.
    """
    gradient = gradient.detach().requires_grad_()
    pieces = gradient.split([p.numel() for p in parameters])
    found = [_one(m, p, g.view(p.shape)) for m, p, g in zip(moves, parameters, pieces)]
    moved, diagonal = (torch.cat([pair[i].flatten() for pair in found]) for i in range(2))
    # Coordinates do not mix, so that the gradient of the sum is all the slopes.
    slope, diagonal = torch.autograd.grad(moved.sum(), gradient)[0], diagonal.detach()
    return Ahead(moved.detach(), diagonal, torch.where(slope.isnan(), diagonal, slope))  # NaN: the root of 0


def _one(move: Move, parameter: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    group, state = move.group, move.state(parameter)
    decay, p = float(group["weight_decay"]), whole(parameter.detach()).to(gradient.dtype)
    decoupled = group.get("decoupled_weight_decay", isinstance(move.optimizer, torch.optim.AdamW))
    if decay and not decoupled:
        gradient = gradient + decay * p
    if isinstance(move.optimizer, torch.optim.SGD):
        moved, diagonal = _sgd(move, state, gradient)
    elif isinstance(move.optimizer, ADAM):
        moved, diagonal = _adam(move, state, gradient)
    elif isinstance(move.optimizer, torch.optim.RMSprop):
        moved, diagonal = _rmsprop(move, state, gradient)
    else:
        total = _past(state, "sum", gradient) + gradient.square()
        diagonal = move.factor / (total.sqrt() + group["eps"])
        moved = diagonal * gradient
    if decay and decoupled:
        moved = moved + float(group["lr"]) * decay * p
    return moved, diagonal


def _sgd(move: Move, state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, Tensor]:
    group, past = move.group, state.get("momentum_buffer")
    step = gradient
    if group["momentum"]:
        momentum = float(group["momentum"])
        step = gradient if past is None else momentum * past.to(gradient) + (1.0 - group["dampening"]) * gradient
        step = gradient + momentum * step if group["nesterov"] else step
    return float(group["lr"]) * step, torch.full_like(gradient, move.factor)


def _adam(move: Move, state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, Tensor]:
    group, (first, second) = move.group, map(float, move.group["betas"])
    steps = float(state.get("step", 0.0)) + 1.0
    square = (1.0 - second) * gradient.square() + second * _past(state, "exp_avg_sq", gradient)
    if group["amsgrad"]:
        square = torch.maximum(square, _past(state, "max_exp_avg_sq", gradient))
    divisor = square.sqrt() / (1.0 - second**steps) ** 0.5 + group["eps"]
    mean = first * _past(state, "exp_avg", gradient) + (1.0 - first) * gradient
    rate = float(group["lr"]) / (1.0 - first**steps)
    return rate * mean / divisor, move.factor / divisor


def _rmsprop(move: Move, state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, Tensor]:
    group, alpha = move.group, float(move.group["alpha"])
    square = alpha * _past(state, "square_avg", gradient) + (1.0 - alpha) * gradient.square()
    if group["centered"]:
        mean = alpha * _past(state, "grad_avg", gradient) + (1.0 - alpha) * gradient
        square = (square - mean.square()).clamp_min(0.0)
    divisor = square.sqrt() + group["eps"]
    step = gradient / divisor
    if group["momentum"]:
        step = step + float(group["momentum"]) * _past(state, "momentum_buffer", gradient)
    return float(group["lr"]) * step, move.factor / divisor


def _past(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    """An entry of the state in the dtype of ``like``; zeros before the first step."""
    found = state.get(name)
    return torch.zeros_like(like) if found is None else found.to(like.dtype)
