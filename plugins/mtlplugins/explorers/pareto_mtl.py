"""``pareto-mtl``: one model per sector of the loss space (Lin et al. 2019)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView, number
from mtlcore.contracts import State
from mtlplugins.explorers.sweep import Sweep
from mtlplugins.solvers.cosines import Array, cosines
from mtlplugins.solvers.min_norm import min_norm


@dataclasses.dataclass(frozen=True)
class Sector(Aggregator):
    """The step of one sub-problem: the losses have to stay in the sector of ray u_k.

    Constraint j is active if (u_j - u_k)'L > 0; its gradient is h_j = J'(u_j - u_k).

    - Phase 1, until the losses have been in the sector once, but at most ``feasible_steps`` steps: the min-norm point
      of the active h_j. [code]
    - Phase 2: the min-norm point of all g_i and the active h_j, times K / sum|w|. [code]

    Weights can be negative. Heads get them, too, because the code uses the gradients of all parameters [code].

    Args:
        preferences: u (n, K), the rays, as rows of plain numbers.
        index: k.
        feasible_steps: largest number of steps in phase 1.
        rescale: whether to multiply by K / sum|w| in phase 2.
    """

    needs = Needs.GRAMIAN

    preferences: tuple[tuple[float, ...], ...] = ()
    index: int = 0
    feasible_steps: int = 0
    rescale: bool = True

    def init(self, n_tasks: int) -> State:
        """Whether the sector has been reached."""
        return {"feasible": torch.zeros((), dtype=torch.bool)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) of the task gradients in the min-norm point."""
        rays, losses = np.array(self.preferences), np.array(view.loss_values)
        sides = np.delete(rays - rays[self.index], self.index, axis=0)
        active = sides[sides @ losses > 0.0]
        feasible = bool(state["feasible"]) or not len(active)
        first = not feasible and view.step < self.feasible_steps
        rows = active if first else np.vstack([np.eye(len(losses)), active])
        weights = _min_norm(rows @ view.gramian.double().numpy() @ rows.T) @ rows
        size = float(np.abs(weights).sum())
        if self.rescale and not first and size > 0.0:
            weights = weights * len(losses) / size
        found = torch.from_numpy(weights)
        notes = {"active": len(active), "phase": 1 if first else 2}
        return Aggregation(found, None, {"feasible": torch.tensor(feasible)}, notes, found)


def _min_norm(gramian: Array) -> Array:
    """Simplex weights of the min-norm point of rows with this Gramian; a zero row is itself that point."""
    found = cosines(gramian)
    if found.live is not None:
        zero = np.setdiff1d(np.arange(len(gramian)), found.live)
        weights: Array = np.zeros(len(gramian))
        weights[zero] = 1.0 / len(zero)
        return weights
    b, _, _ = min_norm(found.matrix, 1.0 / found.norms)
    out: Array = b / found.norms
    out /= out.sum()
    return out


@dataclasses.dataclass(frozen=True)
class ParetoMTL(Sweep):
    """Rays u_k divide the space of losses into sectors; model k finds a Pareto-stationary point in its sector. [paper]

    The ray of a preference p is 1 - p, normalised to length 1: a larger preference means a smaller loss. For two tasks
    these are rays from one axis to the other; in the paper their angles are equally spaced. [choice]

    Known: unlike a weighted sum it can reach every part of a front that is not convex. The rays fix ratios of losses,
    so the ends of the front are found only if the smallest loss of a task is near zero.

    Args:
        points: number of models; at least one per task.
        feasible: largest share of the steps for phase 1; 0.2 [code].
    """

    paper = "https://arxiv.org/abs/1912.12854"

    claims: ClassVar[frozenset[str]] = frozenset()

    feasible: float = number(0.2, low=0.0, high=1.0)

    def method(self, preferences: Tensor, index: int, steps: int) -> Aggregator:
        """The aggregator of one sector."""
        rays = torch.nn.functional.normalize(1.0 - preferences, dim=1)
        return Sector(tuple(map(tuple, rays.tolist())), index, round(self.feasible * steps))
