"""Dominated conflict, the trigger of COST: the mean gradient has a negative cosine with a task gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mtlcore import Conflict, ConflictDetector, Needs, StepView, choice, flag, number
from mtlplugins.detectors import angles


@dataclass(frozen=True)
class Dominated(ConflictDetector):
    """Dominated conflict: cos(g_i, g_0) < -threshold for the mean gradient g_0 = (1/K) sum_j g_j. [paper Def. 1]

    Args:
        rule: which tasks count.
            "smallest": the task with the smallest gradient norm (ties: any of them). [paper Eq. 3]
            "any": at least one task. [code; for K = 2 the same as "smallest", for K > 2 a conflict is found more often]
            "fraction": at least ``rho`` of the tasks, for many tasks. [choice A; the paper's Eq. 4 was not readable]
        threshold: tau in [0, 1). With tau > 0 weak domination is ignored. [choice B for "any"]
        rho: the fraction of "fraction".
        at_zero: whether the threshold itself counts: cos(g_i, g_0) <= -threshold, with which orthogonal gradients are a
            conflict. [code; the paper's Eq. 3 has <]

    ``severity`` is minus the cosine that decides: for "smallest" that of the task with the smallest gradient, for "any"
    the smallest cosine, for "fraction" the ceil(rho K)-th smallest. It is in [-1, 1] and does not depend on the scale
    of the Jacobian. The verdict is exactly severity > threshold (``at_zero``: severity >= threshold). Zero gradients
    count in the mean and in K, and are never dominated. With one task, or a mean gradient of zero, there is no conflict
    and the severity is 0.
    """

    needs = Needs.GRAMIAN
    paper = "https://arxiv.org/abs/2503.04046"
    claims = frozenset({"permutation-equivariant", "scale-free"})

    rule: str = choice("smallest", ("smallest", "any", "fraction"))
    threshold: float = number(0.0, low=0.0, high=1.0, open_high=True)
    rho: float = number(0.5, low=0.0, high=1.0, open_low=True)
    at_zero: bool = flag(False)

    def detect(self, view: StepView) -> Conflict:
        """The verdict on the tasks of ``view``."""
        gram = view.gramian
        k = view.n_tasks
        cos = angles.with_mean(gram)
        size = angles.norms(gram)
        if k < 2:
            severity = 0.0
        elif self.rule == "smallest":
            weakest = size == torch.where(size > 0.0, size, torch.full_like(size, math.inf)).min()
            severity = -angles.smallest(cos[weakest])
        elif self.rule == "any":
            severity = -angles.smallest(cos)
        else:
            # Not ceil(rho * k): .28 * 25 is more than 7 in floats, while 7 / 25 is .28.
            rank = next(n for n in range(1, k + 1) if n / k >= self.rho)
            severity = -angles.smallest(cos, rank)
        severity += 0.0  # -0.0 reads badly in a log
        dominated = angles.negative(cos, self.threshold)
        conflicting = severity > self.threshold
        if self.at_zero and k > 1:
            dominated = dominated | (cos == -self.threshold)  # NaN, where a gradient is zero, is not equal
            conflicting = severity >= self.threshold and not bool(cos.isnan().all())
        return Conflict(
            conflicting=conflicting,
            severity=severity,
            pairs=angles.negative(angles.pairwise(gram)),
            dominated=dominated,
            diagnostics={"cosine_with_mean": cos, "rule": self.rule},
        )
