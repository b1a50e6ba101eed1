"""``cr-mogm``: the weights of any method, averaged over steps."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import Aggregation, StepView, number
from mtlcore.contracts import State
from mtlcore.errors import ConfigurationError
from mtlplugins.wrapping import Wrapper


@dataclasses.dataclass(frozen=True)
class CRMOGM(Wrapper):
    """Zhou et al. 2022, "On the convergence of stochastic multi-objective gradient manipulation and beyond" [lib code;
    paper*]: w_t = alpha w_{t-1} + (1 - alpha) w^_t around the weights w^ of any method; w_0 is the first w^.

    A method's weights depend on the batch as its gradients do, and the product of the two is biased; weights that move
    slowly are nearly independent of the batch. The paper lets alpha -> 1 as the learning rate falls.

    Kept: whatever holds of weights and survives a convex combination. Dropped: everything about one step's gradients
    (no conflict, stationarity, agreement with a reference), because the weights are those of older ones; and that the
    order of the tasks does not matter: where many weights give one direction, as with equal gradients, a method may
    return any of them, and in the next step they are no longer the same. alpha = 0 passes all through. Absent tasks
    keep their average; the method must return weights.

    Args:
        method: any aggregator that returns weights.
        alpha: weight of the past [lib code: 0.9].

    Raises:
        ConfigurationError: the method returned a direction.
    """

    paper: ClassVar[str] = "https://openreview.net/forum?id=ScwfQ7hdwyP"
    keeps = frozenset(
        {
            "conic-combination",
            "simplex-weights",
            "equivariant-in-distribution",
            "positively-homogeneous",
            "parameter-rotation",
        }
    )

    alpha: float = number(0.9, low=0.0, high=1.0)

    def init(self, n_tasks: int) -> State:
        """Averages and who has one, for trunk and heads, beside the method's state."""
        zeros = torch.zeros(n_tasks, dtype=torch.float64, device="cpu")
        return {"average": zeros, "heads": zeros.clone(), "met": zeros.clone(), **super().init(n_tasks)}

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """w_t (K,)."""
        answer, new = self.asked(view, state)
        if answer.weights is None:
            raise ConfigurationError(
                f"cr-mogm averages weights, but {type(self.wrapped).__name__} returned a direction: use 'ema'."
            )
        listed, heads = list(view.task_index), self.heads(answer)
        met = state["met"][listed] > 0.0
        new = {**new, "met": state["met"].clone()}
        new["met"][listed] = 1.0
        parts = {"average": answer.weights, "heads": answer.weights if heads is None else heads}
        for name, fresh in parts.items():
            old = state[name][listed]
            moved = torch.where(met, self.alpha * old + (1.0 - self.alpha) * fresh.cpu().double(), fresh.cpu().double())
            full = state[name].clone()
            full[listed] = moved
            new[name] = full
        notes = {**answer.diagnostics, "weights_of_step": answer.weights}
        return dataclasses.replace(
            answer,
            weights=new["average"][listed],
            head_weights=None if heads is None else new["heads"][listed],
            state=new,
            diagnostics=notes,
        )
