"""The baseline for ablations: a random point on the same symmetry orbit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtlcore import Displacement, TeleportProblem, TeleportStrategy, number
from mtlplugins.teleports.symmetry.channels import find_groups
from mtlplugins.teleports.symmetry.relu_rescaling import sound, stay
from mtlplugins.teleports.symmetry.scaling import displacement, factors


@dataclass(frozen=True)
class RandomRescaling(TeleportStrategy):
    """``relu-rescaling`` with log-scales drawn uniformly from [-bound, bound] instead of optimised. [choice]

    It does not look at the conflict, so it is accepted whenever it keeps the losses. The gain of a strategy over this
    baseline is the gain of its search.

    Args:
        bound: largest |log lambda|.
    """

    paper = "https://arxiv.org/abs/2503.04046"

    exact = True
    improves = False
    claims = frozenset(
        {"loss-invariant", "maps-tell-the-truth", "history-in-new-coordinates", "gradients-in-new-coordinates"}
    )

    bound: float = number(0.7, low=0.0)

    def propose(self, problem: TeleportProblem, generator: torch.Generator) -> Displacement:
        """A point on the network's symmetry orbit, with its maps."""
        found = find_groups(problem.trunk)
        groups = sound(problem, found.groups, generator, whole=found.whole)
        if not groups:
            return stay(found)
        parameters = dict(problem.trunk.named_parameters())
        device = next(iter(parameters.values())).device
        logs = [
            self.bound
            * (2.0 * torch.rand(g.units, generator=generator, dtype=torch.float64, device="cpu") - 1.0).to(device)
            for g in groups
        ]
        scales = factors(groups, logs, {n: p.shape for n, p in parameters.items()})
        return displacement(problem, scales, {"groups": len(groups), "units": sum(g.units for g in groups)})
