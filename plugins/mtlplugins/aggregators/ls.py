"""Linear scalarisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mtlcore import Aggregation, Aggregator, Needs, StepView, integer, vector
from mtlcore.errors import ConfigurationError
from mtlplugins.per_task import check_length, weights_present

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LS(Aggregator):
    """The mean of the losses, or a weighted mean: d = sum_i u_i g_i with u on the simplex.

    It costs one backward pass, O(1) in K. A stationary point is Pareto stationary, because the weights are constant and
    on the simplex. Not promised: no conflict. [textbook]

    Args:
        weights: one non-negative number per task, normalised to sum 1; None: equal weights.
        draw: instead of ``weights``: the seed of weights that are drawn once from the uniform distribution on the
            simplex and kept for the whole training, as in a random search over fixed weights.

    Raises:
        ConfigurationError: the weights of the tasks present are all zero, or there is not one per task; or both
            ``weights`` and ``draw`` are given.
    """

    needs: ClassVar[Needs] = Needs.LOSSES

    weights: tuple[float, ...] | None = vector(None, low=0.0)
    draw: int | None = integer(None, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.draw is not None:
            raise ConfigurationError("ls: weights and draw both say what the weights are; give one of them.")

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; equal weights treat tasks alike."""
        always = {
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "simplex-weights",
            "resume-equivalent",
            "one-backward-pass",
            "parameter-rotation",
        }
        if self.draw is None:  # the references do not know the draws
            always |= {"matches-reference", "coefficient-identity"}
        if self.weights is None and self.draw is None:
            always |= {"permutation-equivariant", "no-conflict-identity", "zero-only-if-stationary"}
        return frozenset(always)

    def init(self, n_tasks: int) -> State:
        """No state."""
        check_length("ls", "weights", self.weights, n_tasks)
        return {}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Constant weights."""
        n = view.n_tasks
        if self.draw is not None:
            return Aggregation(weights=_drawn(self.draw, view.task_index), state=state)
        if self.weights is None:
            return Aggregation(weights=torch.full((n,), 1.0 / n, dtype=torch.float64, device="cpu"), state=state)
        chosen = torch.tensor(weights_present("ls", self.weights, view), dtype=torch.float64, device="cpu")
        return Aggregation(weights=chosen / chosen.sum(), state=state)


def _drawn(number: int, tasks: Sequence[int]) -> torch.Tensor:
    """Weights (K,) of these tasks: normalised exponential numbers, uniform on the simplex; each task keeps its own."""
    generator = torch.Generator().manual_seed(number)
    exponentials = -torch.log1p(-torch.rand(max(tasks) + 1, generator=generator, dtype=torch.float64))
    chosen = exponentials[list(tasks)]
    return chosen / chosen.sum()
