"""``rlw``: random loss weighting (Lin et al. 2022)."""

from __future__ import annotations

import dataclasses

import torch

from mtlcore import choice
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView


@dataclasses.dataclass(frozen=True)
class RLW(Aggregator):
    """w = softmax(z), z ~ N(0, I_K), drawn anew in every step [paper, lib code].

    E[w] = 1/K, so the expected step is that of linear scalarisation: a baseline for loss balancers. The numbers come
    from the step's own generator; the same run draws the same weights.
    Promised: weights are positive, and no task is preferred (equivariance under permutations, in distribution).

    Args:
        total: "one", or "n-tasks" for weights that sum to K (the paper allows both).
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/2111.10603"

    total: str = choice("one", ("one", "n-tasks"))

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; the weights sum to one only with total="one"."""
        return frozenset(
            {"conic-combination", "resume-equivalent", "one-backward-pass", "equivariant-in-distribution"}
            | ({"simplex-weights"} if self.total == "one" else set())
        )

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,) that sum to one or to K."""
        noise = torch.randn(view.n_tasks, generator=view.generator, dtype=torch.float64, device="cpu")
        weights = torch.softmax(noise, 0)
        return Aggregation(weights=weights * view.n_tasks if self.total == "n-tasks" else weights, state=state)
