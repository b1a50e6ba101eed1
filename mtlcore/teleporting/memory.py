"""The optimizer's history after an accepted teleport."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlcore import trajectory
from mtlcore.contracts import Displacement
from mtlcore.teleporting.problem import Problem
from mtlcore.teleporting.transaction import Transaction

History = Literal["carry", "reset", "keep"]
Direction = Literal["mean", "previous"]
Over = Literal["moved", "shared"]


@dataclasses.dataclass
class Memory:
    """How it follows, and g', the gradient that historical trajectory reuse compares the jump with.

    Args:
        history: "carry", "reset" or "keep"; see :class:`.Teleporter`.
        sign, direction, over: of historical trajectory reuse; see :class:`.Teleporter`.
    """

    history: History
    sign: int
    direction: Direction
    over: Over
    previous: list[Tensor] | None = None
    """The combined gradient of the last step, per parameter of the trunk, if ``direction`` asks for it."""

    def remember(self, parameters: Sequence[nn.Parameter]) -> None:
        """The combined gradient in ``.grad``, for the next teleport."""
        if self.direction == "previous" and self.history == "carry":
            self.previous = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]

    def slope(self, problem: Problem, proposal: Displacement, direction: Sequence[Tensor] | None) -> dict[str, Tensor]:
        """g' by parameter; empty if nothing needs it."""
        displaced = [n for n in proposal.parameters if n not in proposal.maps]
        if self.history != "carry" or problem.optimizer_is_blank() or not displaced:
            return {}
        names = list(problem.parameters()) if self.over == "shared" else displaced
        if direction is not None:
            return {n: d for n, d in zip(problem.parameters(), direction) if n in names}
        mean = problem.mean_gradient()
        return {n: mean[n] for n in names}

    def follow(
        self, transaction: Transaction, proposal: Displacement, scale: float, slope: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Carry the history; the network has moved already. Returns what was done."""
        optimizer = transaction.optimizer
        if optimizer is None or self.history == "keep":
            return {"history": "kept"}
        moved = {n: transaction.trunk_parameters[n] for n in proposal.parameters}
        head_moved = {n: transaction.head_parameters[n] for n in proposal.head_parameters}
        if self.history == "reset":
            trajectory.reset(optimizer, [*moved.values(), *head_moved.values()])
            return {"history": "reset"}
        for parameters, maps in ((moved, proposal.maps), (head_moved, proposal.head_maps)):
            for name, parameter in parameters.items():
                if name in maps:
                    trajectory.transport(optimizer, parameter, maps[name])
        displaced = [n for n in moved if n not in proposal.maps]
        if not displaced:
            return {"history": "transported"}
        if not slope:
            return {"history": "none yet"}
        jump = {n: (proposal.parameters[n] - transaction.saved(moved[n])) * scale for n in displaced}
        jumps = [jump[n] if n in jump else torch.zeros_like(g) for n, g in slope.items()]
        cosine = trajectory.similarity(jumps, list(slope.values()), self.sign)
        sigma = min(max(cosine, 0.0), 1.0)
        trajectory.reuse(optimizer, [moved[n] for n in displaced], sigma)
        return {"history": "reused", "history_cosine": cosine, "sigma": sigma}
