"""What the next steps of the optimizer promise to every task, from a place: what a teleport may be judged by instead of
conflict.

A better cosine is not yet progress. Here the network goes, for a look, where ``horizon`` steps along the mean gradient
would take it, in the metric in which the optimizer moves. The losses there contain the curvature, to all orders. [ours]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlcore.teleporting.changes import relative_changes
from mtlcore.teleporting.problem import Problem


@torch.no_grad()
def outlook(problem: Problem, losses: Mapping[str, Tensor], pace: Sequence[Tensor], horizon: int) -> float:
    """The largest relative change of a task's loss in ``horizon`` steps along the mean gradient: how the task fares
    that is served worst. Lower is better; below zero every task gains. The network stays.

    Args:
        losses: as evaluated where the network is, with their graph, which is freed.
        pace: as :meth:`mtlcore.contracts.TeleportProblem.pace` gives it.
    """
    before, blocks = problem.rows_of(losses)
    parameters = list(problem.parameters().values())
    here = [p.detach().clone() for p in parameters]
    try:
        for p, block, d in zip(parameters, blocks, pace):
            p.data.sub_((horizon * d * block.double().mean(dim=0)).view_as(p).to(p.dtype))
        after = problem.losses()
    finally:
        for p, value in zip(parameters, here):
            p.data.copy_(value)
    return max(v if math.isfinite(v) else math.inf for v in relative_changes(before, after).values())
