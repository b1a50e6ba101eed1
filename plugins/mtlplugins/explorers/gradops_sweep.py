"""``gradops-sweep``: GradOPS, once per value of its exponent (Yang et al. 2025)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from mtlcore import Explorer, create, vector
from mtlcore.contracts import Learnt
from mtlcore.errors import ConfigurationError
from mtlcore.exploring import Exploration
from mtlplugins.explorers.sweep import MODEL

LOSSES = "losses"


@dataclasses.dataclass(frozen=True)
class GradOPSSweep(Explorer):
    """One model per alpha, each with an equal part of the budget and the same initial weights.

    alpha < 0 favours the dominated tasks, alpha > 0 the dominating ones [paper, abstract]. alpha says nothing about
    individual tasks, so a preference p selects one of the trained models: the one with the smallest sum_i p_i L_i,
    where L are the mean training losses over the last tenth of the steps. [choice]

    Proved: a larger p_i never selects a model with a larger L_i. Not promised: the ends of the front, because no alpha
    means one task alone.

    Args:
        alphas: the exponents; the default grid is a [choice]; the paper's best value in one experiment is -3.
    """

    paper = "https://arxiv.org/abs/2503.03438"

    claims: ClassVar[frozenset[str]] = frozenset({"monotone-edge"})

    alphas: tuple[float, ...] = vector((-3.0, -1.0, 0.0, 1.0, 2.0), low=-10.0, high=10.0)

    def search(self, work: Exploration) -> dict[str, Tensor]:
        """One model after the other is trained."""
        if not self.alphas:
            raise ConfigurationError("GradOPSSweep(alphas=()): give at least one exponent.")
        methods = [create("aggregator", "gradops", alpha=a) for a in self.alphas]
        steps = work.steps(max(work.price(m) for m in methods), len(methods))
        tail = max(1, steps // 10)
        states, ends = [], []
        for index, method in enumerate(methods):
            model = work.fresh()
            shared, own = work.split(model)
            seen: list[list[float]] = []

            def closure(step: int, model: torch.nn.Module = model, seen: list[list[float]] = seen) -> dict[str, Tensor]:
                losses = work.losses(model, step)
                seen.append([float(v.detach()) for v in losses.values()])
                return losses

            work.train(closure, shared, own, method, steps=steps, index=index)
            states.append(model.state_dict())
            ends.append(torch.tensor(seen[-tail:], dtype=torch.float64).mean(0))
        return {LOSSES: torch.stack(ends)} | {MODEL + n: torch.stack([s[n] for s in states]) for n in states[0]}

    def read(self, learnt: Learnt, preference: Tensor) -> dict[str, Tensor]:
        """The trained model with the smallest sum_i p_i L_i."""
        index = int((learnt[LOSSES] @ preference).argmin())
        return {n.removeprefix(MODEL): v[index] for n, v in learnt.items() if n.startswith(MODEL)}
