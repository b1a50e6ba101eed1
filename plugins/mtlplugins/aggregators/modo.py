"""``modo``: weights that move towards the min-norm point, by double sampling."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import integer, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import rows
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array
from mtlplugins.solvers.simplex import project_simplex, settled


@dataclasses.dataclass(frozen=True)
class MoDo(Aggregator):
    """Chen, Fernando, Ying and Chen 2023 [paper*, lib code]: with J_1, J_2, J_3 of independent batches,

        w <- P(w - gamma (J_1 J_2' w + rho w)) ,     d = J_3' w ,     P the projection onto the simplex.

    J_1 J_2' w is an unbiased estimate of the gradient of |E[J]' w|^2 / 2; J_1 J_1' w is biased. ``samples = 3`` is the
    paper's algorithm. With 2, the default, J_3 is J_1: the gradient of w is still unbiased, d and w share a batch, and
    a step costs a third less [choice].

    Proved: the weights are on the simplex. With identical batches and a small gamma, w makes projected gradient descent
    on MGDA's problem plus rho |w|^2 / 2. Not promised: no conflict. gamma J_1 J_2' has a unit, so the answer depends on
    the scale of the gradients. A task missing from one of the batches keeps its w. Cost: 2 or 3 passes and their rows.

    Args:
        gamma: step size of w [lib code: 1e-3].
        rho: regularisation towards equal weights [lib code: 0.1].
        samples: number of independent batches, 2 or 3.
    """

    needs = Needs.JACOBIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2305.20057"
    claims = frozenset(
        {"conic-combination", "simplex-weights", "permutation-equivariant", "resume-equivalent", "parameter-rotation"}
    )

    gamma: float = number(1e-3, low=0.0, log=True)
    rho: float = number(0.1, low=0.0)
    samples: int = integer(2, low=2, high=3)

    @property
    def batches(self) -> int:  # type: ignore[override]
        """The number of batches, ``samples``."""
        return self.samples

    def init(self, n_tasks: int) -> State:
        """w (K,)."""
        return {"weights": torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64, device="cpu")}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """w after its step."""
        second, there = rows.other(view, 0)
        first = view.jacobian
        if self.samples == 3:
            first, second = second, rows.other(view, 1)[0]
            there = there & rows.other(view, 1)[1]
        full = state["weights"].clone()
        listed = list(view.task_index)
        w = full.numpy()[listed]
        share = float(w.sum())
        if there.any() and share > 0.0:
            product = rows.cross(first, second)
            pull = settled(product @ w + self.rho * w, float(abs(product).max()))
            w = _moved(w, w - self.gamma * pull, there)
        full.numpy()[listed] = w
        weights = w / share if share > 0.0 else w + 1.0 / len(w)
        return Aggregation(weights=_numpy.tensor(weights), state={"weights": full})


def _moved(w: Array, moved: Array, there: Array) -> Array:
    """w after its step: the tasks that are in every batch keep the sum of their weights, the others their weight."""
    share, out = float(w[there].sum()), w.copy()
    if share > 0.0:
        out[there] = project_simplex(moved[there], share)
    return out
