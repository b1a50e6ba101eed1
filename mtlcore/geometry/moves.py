"""How an optimizer turns a gradient d into a move: -D d, plus what momentum and decay add.

Known are SGD, Adam, AdamW, RMSprop and Adagrad. For each, the move of one parameter is
``-(D d) - rest``, with a diagonal D that contains the learning rate and the share that a fresh gradient has in a
running mean, and a ``rest`` that does not depend on d (the part of old gradients, and the decay of weights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.distributed.dtensors import whole
from mtlcore.errors import ConfigurationError
from mtlcore.trajectory import Optimizers, each

ADAM = (torch.optim.Adam, torch.optim.AdamW)
"""Before torch 2.7 the second is not a subclass of the first."""
KNOWN = (torch.optim.SGD, *ADAM, torch.optim.RMSprop, torch.optim.Adagrad)


@dataclasses.dataclass(frozen=True)
class Move:
    """Of one parameter, before the step.

    Args:
        optimizer, group: that hold it.
        factor: of the move in D d, where D without it is one over the root of a mean square.
    """

    optimizer: torch.optim.Optimizer
    group: dict[str, Any]
    factor: float

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> Move:
        """Read from options and state."""
        state, rate = optimizer.state.get(parameter, {}), float(group["lr"])
        if isinstance(optimizer, torch.optim.SGD):
            momentum = group["momentum"]
            fresh = 1.0 if not momentum or state.get("momentum_buffer") is None else 1.0 - group["dampening"]
            return cls(optimizer, group, rate * fresh * (1.0 + momentum if momentum and group["nesterov"] else 1.0))
        steps = float(state.get("step", 0.0))
        if isinstance(optimizer, ADAM):
            beta = float(group["betas"][0])
            return cls(optimizer, group, rate * (1.0 - beta) / (1.0 - beta ** (steps + 1.0)))
        if isinstance(optimizer, torch.optim.Adagrad):
            rate /= 1.0 + steps * group["lr_decay"]
        return cls(optimizer, group, rate)

    def state(self, parameter: Tensor) -> dict[str, Any]:
        """Of the optimizer for it; of a parameter in shards all of it, gathered."""
        return {name: whole(value) for name, value in self.optimizer.state.get(parameter, {}).items()}

    def lasting(self) -> float:
        """As ``factor``, for a gradient that stays the same until momentum has taken it up: the move of one step."""
        rate, momentum = float(self.group["lr"]), float(self.group.get("momentum", 0.0))
        if isinstance(self.optimizer, ADAM):
            return rate
        if not isinstance(self.optimizer, torch.optim.SGD):
            return self.factor / (1.0 - momentum)
        kept = (1.0 - float(self.group["dampening"])) / (1.0 - momentum) if momentum else 1.0
        return rate * (1.0 + momentum * kept if momentum and self.group["nesterov"] else kept)

    def known(self, parameter: Tensor) -> Tensor | None:
        """The root of the mean square plus eps, by which the optimizer divides; from its present state. 0 where nothing
        is known of a coordinate: its past gradients are all zero. None where the optimizer does not divide."""
        root = self._root(parameter)
        if root is None:
            return None
        return torch.where(root > 0.0, root + float(self.group["eps"]), torch.zeros_like(root))

    def parts(self, parameter: Tensor, before: Tensor, gradient: Tensor, out: Tensor) -> Tensor | None:
        """Of the move that was made, the part of the gradient, into ``out``; returned is that of weight decay, None
        without.

        Args:
            parameter: whose state is read, as it is now.
            before: its values before the move.
            gradient: as the optimizer had it.
            out: of the same shape and dtype as the two.
        """
        divisor = self._root(parameter, out)
        if divisor is None:
            torch.mul(gradient, -self.factor, out=out)
            return self.decay(before, 1.0)
        divisor.add_(float(self.group["eps"]))  # 0 / 0 without it, as in the optimizer
        decay = self.decay(before, divisor)
        torch.div(gradient, divisor, out=out).mul_(-self.factor)
        return decay

    def _root(self, parameter: Tensor, out: Tensor | None = None) -> Tensor | None:
        """Of the mean square, into ``out`` if there is one; None where the optimizer does not divide."""
        if isinstance(self.optimizer, torch.optim.SGD):
            return None
        state, corrected = self.state(parameter), 1.0
        if isinstance(self.optimizer, ADAM):
            square = state.get("max_exp_avg_sq" if self.group["amsgrad"] else "exp_avg_sq")
            steps = float(state.get("step", 0.0))
            if steps:
                corrected = 1.0 - float(self.group["betas"][1]) ** steps
        elif isinstance(self.optimizer, torch.optim.RMSprop):
            square = state.get("square_avg")
            if square is not None and self.group["centered"]:
                square = square - state["grad_avg"].square()
        else:
            square = state.get("sum")
        found = out
        if found is None:
            found = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if square is None:
            return found.zero_()
        return found.copy_(square).div_(corrected).clamp_min_(0.0).sqrt_()

    def decay(self, parameter: Tensor, divided: Tensor | float) -> Tensor | None:
        """The part of the move, with its sign, that weight decay has; None without."""
        rate = float(self.group["weight_decay"])
        if not rate:
            return None
        coupled = not self.group.get("decoupled_weight_decay", isinstance(self.optimizer, torch.optim.AdamW))
        if coupled:
            return -rate * self.factor * parameter / divided
        return -rate * float(self.group["lr"]) * parameter


def moves(optimizer: Optimizers, parameters: Sequence[Tensor], what: str) -> list[Move]:
    """One per parameter.

    Args:
        optimizer: of the run.
        parameters: of the trunk.
        what: wants to know, for errors.

    Raises:
        ConfigurationError: an optimizer whose step is not known here, or that maximises, or lacks a parameter.
    """
    held = {id(p): (o, g) for o in each(optimizer) for g in o.param_groups for p in g["params"]}
    out = []
    for p in parameters:
        if id(p) not in held:
            raise ConfigurationError(f"{what}: no optimizer holds a parameter of the trunk of shape {tuple(p.shape)}.")
        one, group = held[id(p)]
        # A subclass may move in another way.
        if type(one) not in KNOWN or group.get("maximize", False):
            known = ", ".join(c.__name__ for c in KNOWN)
            how = " with maximize=True" if type(one) in KNOWN else ""
            raise ConfigurationError(
                f"{what}: the step of optimizer {type(one).__module__}.{type(one).__qualname__}{how} is not known. "
                f'Use one of {known} (not a subclass), or metric="euclidean".'
            )
        out.append(Move.of(one, group, p))
    return out


def pace(optimizer: Optimizers, parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """How far a step moves each coordinate for each unit of a gradient that stays the same: (numel,) float64 for each
    parameter, learning rate included, from the state before the step; 0 for a coordinate of which the optimizer knows
    nothing. None if its steps are not known, or it has none behind it."""
    try:
        found = moves(optimizer, parameters, "the pace")
    except ConfigurationError:
        return None
    paces = []
    for move, p in zip(found, parameters):
        root = move.known(p)
        divisor = torch.ones_like(p) if root is None else root
        inverse = torch.where(divisor > 0.0, divisor.detach().double().reciprocal(), 0.0)
        paces.append(move.lasting() * inverse.flatten())
    known = all(bool(torch.isfinite(d).all()) for d in paces) and any(bool(d.any()) for d in paces)
    return paces if known else None
