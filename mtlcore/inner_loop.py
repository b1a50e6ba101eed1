"""Inner gradient steps: where would the network go under other weights, without going there.

A bilevel method asks for the losses at z_N, the point that N plain gradient steps on a weighted loss reach from the
current parameters. ``view.inner(weigh, steps, lr)`` answers; this module implements it. Afterwards
everything is bit for bit as before: parameters, buffers, random state. ``.grad`` and the optimizer are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mtlcore import linalg
from mtlcore.contracts import Needs, StepView
from mtlcore.errors import LossError, NonFiniteError
from mtlcore.snapshot import Snapshot


class Together(Protocol):
    """Other processes with batches of their own."""

    def means(self, names: Sequence[str], values: Sequence[float]) -> list[float]:
        """Of these tasks' losses."""

    def averaged(self, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The means of gradients; None where no process has one."""


Evaluate = Callable[[], tuple[Mapping[str, Tensor], Sequence[Tensor]]]
Weigh = Callable[[StepView], Tensor]


def descend(
    view: StepView,
    weigh: Weigh,
    steps: int,
    lr: float,
    *,
    evaluate: Evaluate,
    parameters: Iterable[nn.Parameter],
    modules: Iterable[nn.Module] = (),
    together: Together | None = None,
) -> StepView:
    """Take ``steps`` gradient steps z <- z - lr sum_i w_i grad l_i(z) from the present parameters, look, and go back.

    Costs ``steps`` + 1 forward and ``steps`` backward passes, and one copy of parameters and buffers.

    Args:
        view: the view of this step; its tasks are the ones that count, also after ``view.restricted``.
        weigh: weights (K,) of the tasks' gradients at a point, from the view at that point (losses and features).
        steps: N.
        lr: step size.
        evaluate: losses by task, with graphs, and features of this step's batch at the parameters as they are.
        parameters: what moves: trunk and heads. Those that need no gradient stay.
        modules: networks whose buffers (BatchNorm's statistics) a forward pass may change.
        together: the other processes, whose batches count as well.

    Returns:
        The view at z_N: losses (K,) and features, nothing beyond ``Needs.LOSSES``.

    Raises:
        NonFiniteError: the inner steps diverged; names the task. The network is restored first, as after any error.
        LossError: ``evaluate`` no longer returns one of the tasks.
    """
    moving = [p for p in {id(p): p for p in parameters}.values() if p.requires_grad]
    with Snapshot(modules=modules, parameters=moving).restored():
        for _ in range(steps):
            with torch.enable_grad():
                losses, point = _look(view, evaluate, together)
                with torch.no_grad():
                    weights = weigh(point)
                factors = [linalg.placed(w, loss) for w, loss in zip(weights, losses)]
                gradients: tuple[Tensor | None, ...] = torch.autograd.grad(losses, moving, factors, allow_unused=True)
            if together is not None:
                gradients = together.averaged(moving, gradients)
            for parameter, gradient in zip(moving, gradients):
                if gradient is not None:
                    parameter.data.add_(gradient, alpha=-lr)
        with torch.enable_grad():  # a closure may differentiate inside
            return _look(view, evaluate, together)[1]


def _look(view: StepView, evaluate: Evaluate, together: Together | None) -> tuple[list[Tensor], StepView]:
    by_name, features = evaluate()
    missing = [name for name in view.task_names if by_name.get(name) is None]
    if missing:
        raise LossError(
            f"task {missing[0]!r} is missing when the closure is called again: within a step "
            "it must give the same batch."
        )
    losses = [by_name[name] for name in view.task_names]
    values = torch.stack([loss.detach().to(torch.float64) for loss in losses]).tolist()
    if together is not None:
        values = together.means(view.task_names, values)
    for name, value in zip(view.task_names, values):
        if not abs(value) < float("inf"):
            raise NonFiniteError(f"inner steps: the loss of task {name!r} became {value}; lower the inner step size.")
    kept = [f.detach() for f in features]  # else the view would hold the graph
    gone = {"gramian": None, "jacobian": None, "curvature": None, "others": ()}
    point = view._replaced(losses=values, features=kept, needs=Needs.LOSSES, **gone)
    return losses, point
