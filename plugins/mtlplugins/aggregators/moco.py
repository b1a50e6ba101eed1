"""``moco``: moving averages of the gradients, and weights that move towards their min-norm point."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import choice, linalg, number
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import LossError
from mtlplugins import rows
from mtlplugins.arrays import softmax
from mtlplugins.solvers.simplex import project_simplex, settled


@dataclasses.dataclass(frozen=True)
class MoCo(Aggregator):
    """Fernando et al. 2023 [paper*; lib code from the authors]: in a task's t-th step, with Y (K, P) = 0 at first,

        y_i <- y_i - b_t (y_i - h_i) ,       b_t = beta / t^beta_sigma ,
        w   <- P(w - c_t (Y Y' + rho I) w) , c_t = gamma / t^gamma_sigma ,        d = Y' w .

    h_i = g_i ("none" [paper*]) or h_i = L_i g_i / |g_i| ("loss" [lib code]). P is the projection onto the simplex
    [paper*], or a softmax [lib code]. The averages y_i reduce the bias that the Gramian of noisy gradients has.

    Proved: with constant gradients y_i tends to h_i, with an error proportional to prod (1 - b_t), and with rho = 0 w
    tends to the weights of MGDA; w stays on the simplex. Not promised: no conflict with this step's gradients, or a
    combination of them, because y contains earlier gradients. With "none" the answer depends on the scale of the
    gradients, because c_t Y Y' has a unit. The y and w of absent tasks do not change, and d is made of the others.
    Cost: the rows, and K P numbers of state.

    Args:
        beta: factor of the averages' step size [lib code: 0.5].
        beta_sigma: its exponent of decay [lib code: 0.5].
        gamma: factor of the weights' step size [lib code: 0.1].
        gamma_sigma: its exponent of decay [lib code: 0.5].
        rho: regularisation towards equal weights [lib code: 0].
        update: P: "projection" or "softmax".
        normalise: h: "loss" or "none".

    Raises:
        LossError: "loss" with a negative loss.
    """

    needs = Needs.JACOBIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.12624"
    claims = frozenset({"permutation-equivariant", "resume-equivalent", "parameter-rotation"})

    beta: float = number(0.5, low=0.0, high=1.0)
    beta_sigma: float = number(0.5, low=0.0)
    gamma: float = number(0.1, low=0.0, log=True)
    gamma_sigma: float = number(0.5, low=0.0)
    rho: float = number(0.0, low=0.0)
    update: str = choice("projection", ("projection", "softmax"))
    normalise: str = choice("loss", ("loss", "none"))

    def init(self, n_tasks: int) -> State:
        """y (K, P), w (K,) and the number of steps of each task (K,)."""
        w = torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64, device="cpu")
        return {"tracked": rows.empty(), "weights": w, "count": torch.zeros_like(w)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """A direction (P,)."""
        y = rows.read(state["tracked"], view, len(state["weights"]))
        at, listed = rows.index(view, y), list(view.task_index)
        w, count = state["weights"].clone(), state["count"].clone()
        count[listed] += 1.0
        rate = (self.beta / count[listed] ** self.beta_sigma).to(y)[:, None]
        y[at] = y[at] - rate * (y[at] - self._gradients(view))
        tracked = y[at]
        gram = linalg.gramian(tracked).cpu().numpy()
        own = w.numpy()[listed]
        share = float(own.sum())
        own = own / share if share > 0.0 else own + 1.0 / len(own)
        pull = settled(gram @ own + self.rho * own, float(gram.diagonal().max()))
        # Beyond it a step's length says no more; the projection of an infinity would be none.
        pull = pull.clip(-1e150, 1e150)
        moved = own - (self.gamma / count[listed].numpy() ** self.gamma_sigma) * pull
        own = project_simplex(moved) if self.update == "projection" else softmax(moved)
        w.numpy()[listed] = own * share
        direction = linalg.combine(tracked, torch.from_numpy(own))
        new = {"tracked": y, "weights": w, "count": count}
        return Aggregation(direction=direction, state=new, diagnostics={"simplex_weights": torch.from_numpy(own)})

    def _gradients(self, view: StepView) -> torch.Tensor:
        """h (K, P)."""
        grads = view.jacobian
        if self.normalise == "none":
            return grads
        for name, loss in zip(view.task_names, view.loss_values):
            if loss < 0.0:
                raise LossError(f"moco: the loss of task {name!r} ({loss:g}) is negative: use normalise='none'.")
        largest = grads.abs().amax(dim=1, keepdim=True)
        unit = torch.where(largest > 0.0, grads / torch.where(largest > 0.0, largest, 1.0), 0.0)
        length = unit.double().norm(dim=1)
        factor = torch.where(length > 0.0, view.losses.to(length) / torch.where(length > 0.0, length, 1.0), 0.0)
        return unit * factor.to(unit)[:, None]
