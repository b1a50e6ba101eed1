"""M-ConFIG: ConFIG of moving averages of the gradients; a step needs the gradient of one task only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlcore import Aggregation, Aggregator, Needs, StepView, choice, flag, integer, linalg, number, vector
from mtlcore.errors import ConfigurationError
from mtlplugins.aggregators import _numpy
from mtlplugins.aggregators.config import LENGTHS, combination
from mtlplugins.one_task import chosen, place
from mtlplugins.per_task import check_length, preferences_present
from mtlplugins.solvers.cosines import cosines

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MConFIG(Aggregator):
    """Liu et al. 2024, algorithm 2 [official code: its pseudo-momentum operator].

    m_i is the moving average of task i's gradients. It is updated in the steps in which the task is present; t_i counts
    these steps. t counts the steps since every task has been present once:

        d_t = ConFIG(m_1 / (1 - beta1^t_1), ..., m_K / (1 - beta1^t_K))
        e_t = ((1 - beta1^t) d_t - (1 - beta1^(t-1)) d_(t-1)) / (1 - beta1)
        s_t = beta2 s_(t-1) + (1 - beta2) e_t^2
        step along  d_t / (sqrt(s_t / (1 - beta2^t)) + eps) ,

    e_t is the gradient whose moving average would be d_t, and s_t is its second moment, entry by entry. With one task
    per step, in turn (``mt.backward({task: loss})``), a step costs one backward pass for any K; absent tasks take part
    with their averages. Until every task has been present, d is zero [official code]. d is scaled as in Adam already:
    use plain SGD as the optimizer [official code]. With all tasks in every step, beta1 = 0 and ``second_moment=False``
    it is ConFIG.

    Promised: exact resumption; the order of the tasks does not matter. Not promised: no conflict, because d is made of
    averages and the division by sqrt(s) changes its direction. Memory: K + 2 vectors of the size of the trunk.

    Args:
        beta1: decay of the gradients' averages.
        beta2: decay of the second moment.
        eps: added to the root of the second moment, in units of the gradients [official code]. An entry in which both
            are zero does not move.
        second_moment: whether to divide by the root of s, as published. False: d_t itself, for an optimizer that has a
            second moment of its own.
        preferences: as in ``config``.
        length: as in ``config``.
        tracked: as in ``config``.

    Raises:
        ConfigurationError: the preferences are all zero, or there is not one per task; there is no task of that
            position, or it was removed; or the trunk has another number of parameters than before.
    """

    paper = "https://arxiv.org/abs/2408.11104"
    needs: ClassVar[Needs] = Needs.JACOBIAN
    handles_absent: ClassVar[bool] = True

    beta1: float = number(0.9, low=0.0, high=1.0, open_high=True)
    beta2: float = number(0.999, low=0.0, high=1.0, open_high=True)
    eps: float = number(1e-8, low=0.0)
    second_moment: bool = flag(True)
    preferences: tuple[float, ...] | None = vector(None, low=0.0)
    length: str = choice("projection", LENGTHS)
    tracked: int = integer(0, low=0)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """Preferences, and the place of the tracked task, belong to tasks in their order."""
        out = {"resume-equivalent", "preferences-belong-to-tasks"}
        symmetric = self.preferences is None and self.length != "task"
        return frozenset(out | ({"permutation-equivariant"} if symmetric else set()))

    def init(self, n_tasks: int) -> State:
        """The averages (K, P), with P unknown before the first step; the number of steps of each task;
        (1 - beta1^t) d_t and the root of s (P,); t; and, with the length of one task, which one. (s itself would
        overflow in float32 for gradients of 1e20.)"""
        check_length("m-config", "preferences", self.preferences, n_tasks)
        marked = chosen("m-config", "tracked", self.tracked, n_tasks) if self.length == "task" else {}
        empty = {name: torch.zeros(0, device="cpu") for name in ("pseudo", "root")}
        counts = {"met": torch.zeros(n_tasks, dtype=torch.float64, device="cpu")}
        steps = {"steps": torch.zeros((), dtype=torch.float64, device="cpu")}
        return {"first": torch.zeros(n_tasks, 0, device="cpu"), **empty, **counts, **steps, **marked}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Average, combine, divide."""
        rows, present = view.jacobian, view.present
        old = _sized(state, rows)
        here = present.to(rows.device)[:, None]
        first = torch.where(here, self.beta1 * old["first"] + (1.0 - self.beta1) * rows, old["first"])
        met = old["met"] + present
        new = {**old, "first": first, "met": met}
        waiting = [name for name, count in zip(view.task_names, met.tolist()) if not count]
        if waiting:
            note = {"waiting": f"for the first gradient of {', '.join(waiting)}"}
            return Aggregation(direction=torch.zeros_like(rows[0]), state=new, diagnostics=note)
        share = np.array(preferences_present("m-config", self.preferences, view))
        averages = first / (1.0 - self.beta1**met).to(first)[:, None]
        gram = cosines(linalg.gramian(averages).cpu().numpy())
        at = place("m-config", "tracked", state, view) if self.length == "task" else None
        weights, diagnostics = combination(gram, share, self.length, at)
        direction = linalg.combine(averages, _numpy.tensor(weights))
        return self._divided(direction, new, diagnostics)

    def _divided(self, direction: Tensor, state: State, diagnostics: dict[str, Any]) -> Aggregation:
        steps = state["steps"] + 1.0
        t = float(steps)
        pseudo = (1.0 - self.beta1**t) * direction
        gradient = (pseudo - self.beta1 * state["pseudo"]) / (1.0 - self.beta1)
        root = torch.hypot(self.beta2**0.5 * state["root"], (1.0 - self.beta2) ** 0.5 * gradient)
        if self.second_moment:
            divisor = root / (1.0 - self.beta2**t) ** 0.5 + self.eps
            direction = torch.where(divisor > 0.0, direction / divisor, 0.0)
        new = {**state, "pseudo": pseudo, "root": root, "steps": steps}
        return Aggregation(direction=direction, state=new, diagnostics=diagnostics)


def _sized(state: State, rows: Tensor) -> State:
    """The state with vectors of the rows' size, dtype and device; zeros before the first step."""
    out = dict(state)
    for name in ("first", "pseudo", "root"):
        known = state[name]
        shape = rows.shape if name == "first" else rows.shape[1:]
        if not known.numel():
            out[name] = rows.new_zeros(shape)
        elif known.shape[-1] != rows.shape[1]:
            raise ConfigurationError(
                f"m-config remembers gradients of {known.shape[-1]} parameters, but the trunk has {rows.shape[1]} now: "
                "begin with a fresh state."
            )
        else:
            out[name] = known.to(rows)
    return out
