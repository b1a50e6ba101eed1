"""``db-mtl``: dual balancing: logarithms of the losses, and gradients rescaled to the same length."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins import rows
from mtlplugins.positive import positive


@dataclasses.dataclass(frozen=True)
class DBMTL(Aggregator):
    """Lin et al. 2023 [paper, lib code]: losses are balanced by their logarithms, gradients by their lengths.

        h_i = g_i / L_i  (the gradient of log L_i),   m_i <- b_k m_i + (1 - b_k) h_i,   b_k = beta / k^sigma,
        d = a sum_i m_i / |m_i| ,   a = max_j |m_j| ;     heads get the gradient of sum_i log L_i.

    k counts the steps of a task. m starts at zero, without bias correction [paper, lib code]. Unlike the code, 1e-8 is
    not added to losses and lengths. A task with a loss of exactly zero is left out of the step (see
    mtlplugins.positive).

    Proved: every task contributes a vector of the same length a; |d| <= K a; with beta = 0, d does not change when a
    task's loss is measured in another unit. Not promised: no conflict. With beta > 0, d need not be a conic combination
    of this step's gradients, because m contains older ones. Absent tasks keep m and do not contribute.
    Cost: the rows, and K P numbers of state (none for beta = 0).

    Args:
        beta: weight of earlier gradients; 0.9 as in LibMTL [lib code]; the paper tries 0.1, 0.5 and 0.9 [paper].
        sigma: exponent with which that weight decays; 0 [lib code] or 0.5 [paper].

    Raises:
        LossError: a negative loss; names the task.
    """

    needs = Needs.JACOBIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2308.12029"

    beta: float = number(0.9, low=0.0, high=1.0, open_high=True)
    sigma: float = number(0.0, low=0.0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; with beta = 0 only the gradients of this step count."""
        always = {"permutation-equivariant", "positively-homogeneous", "resume-equivalent", "parameter-rotation"}
        return frozenset(
            always | ({"loss-unit-invariant", "scale-free", "conic-combination"} if not self.beta else set())
        )

    def init(self, n_tasks: int) -> State:
        """The moving averages m (K, P), and the number of steps of each task."""
        return {"mean": rows.empty(), "count": torch.zeros(n_tasks, dtype=torch.float64, device="cpu")}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        keep = positive(view, "db-mtl takes its logarithm: shift the loss, or use a method without logarithms.")
        if keep is not None:
            return _with_zero_losses(self, view, keep, state)
        losses, n = view.losses, len(state["count"])
        mean = rows.read(state["mean"], view, n)
        at, listed = rows.index(view, mean), list(view.task_index)
        count = state["count"].clone()
        count[listed] += 1.0
        beta = (self.beta / count[listed] ** self.sigma).to(mean)[:, None]
        log_gradients = view.jacobian / losses.to(mean)[:, None]
        mean[at] = beta * mean[at] + (1.0 - beta) * log_gradients
        part = mean[at]
        largest = part.abs().amax(dim=1, keepdim=True)
        unit = torch.where(largest > 0.0, part / torch.where(largest > 0.0, largest, 1.0), 0.0)
        lengths = unit.double().norm(dim=1)
        unit = unit / torch.where(lengths > 0.0, lengths, 1.0).to(unit)[:, None]
        scale = float((lengths * largest[:, 0].double()).max())
        direction = (scale * unit.double().sum(0)).to(part)
        new = {"mean": mean if self.beta else rows.empty(), "count": count}
        heads = 1.0 / losses
        return Aggregation(direction=direction, state=new, diagnostics={"length": scale}, head_weights=heads)


def _with_zero_losses(method: DBMTL, view: StepView, keep: list[bool], state: State) -> Aggregation:
    """The answer for the tasks whose loss is not exactly zero; the heads of the others do not move."""
    if not any(keep):
        zero = view.jacobian.new_zeros(view.jacobian.shape[1])
        heads = torch.zeros(view.n_tasks, dtype=torch.float64, device="cpu")
        return Aggregation(direction=zero, state=state, head_weights=heads)
    mask = torch.tensor(keep, device="cpu")
    part = method.aggregate(view.restricted(mask), state)
    heads = torch.zeros(view.n_tasks, dtype=torch.float64, device="cpu")
    assert part.head_weights is not None
    heads[mask] = part.head_weights
    return dataclasses.replace(part, head_weights=heads)
