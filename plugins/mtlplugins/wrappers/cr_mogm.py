"""``cr-mogm``: the weights of any method, averaged over steps."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from mtlcore import Aggregation, Needs, StepView, number
from mtlcore.contracts import State
from mtlcore.errors import ConfigurationError
from mtlplugins.wrapping import Wrapper


@dataclasses.dataclass(frozen=True)
class CRMOGM(Wrapper):
    """Zhou et al. 2022, "On the convergence of stochastic multi-objective gradient manipulation and beyond" [lib code;
    paper*]: w_t = alpha w_{t-1} + (1 - alpha) w^_t around the weights w^ of any method; w_0 is the first w^.

    Weights and gradients of one batch depend on each other, so their product is a biased estimate. Weights that change
    slowly are nearly independent of the batch. In the paper alpha tends to 1 as the learning rate decreases.

    Kept: promises about the weights that hold for convex combinations of weights, too. Dropped: all promises about the
    gradients of one step (no conflict, stationarity, agreement with a reference), because the weights partly belong to
    earlier gradients. Dropped, too: independence of the order of the tasks. If several weight vectors give the same
    direction, as with equal gradients, a method may return any of them, and for the next gradients they differ.
    alpha = 0 changes nothing. Absent tasks keep their average.

    Args:
        method: any aggregator that returns weights.
        alpha: weight of the earlier average [lib code: 0.9].

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
        """The averages for trunk and heads, which tasks have one, and the method's state."""
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
            # A method that reads losses only weights whole losses, heads included.
            head_weights=None if heads is None or self.needs == Needs.LOSSES else new["heads"][listed],
            state=new,
            diagnostics=notes,
        )
