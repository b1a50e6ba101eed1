"""``stch``: smooth Tchebycheff scalarisation (Lin et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from mtlcore import choice, integer, number, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlcore.errors import ConfigurationError
from mtlplugins.arrays import Array, arrays, log_quotient, losses_of, put, softmax, take, tensors
from mtlplugins.per_task import check_length
from mtlplugins.positive import positive, solve_part


@dataclasses.dataclass(frozen=True)
class STCH(Aggregator):
    """A smooth maximum of the losses: mu log sum_i exp(x_i / mu).

    - form "plain": x_i = p_i (L_i - z_i*), hence w_i = p_i softmax(x / mu)_i. [paper]
    - form "log": x_i = log(L_i / N_i), and the value is multiplied by K, hence w_i = K softmax(x / mu)_i / L_i. N is
      the nadir vector, the mean losses over ``nadir_steps`` steps after ``warmup_steps``; until it is known, the step
      is that of sum_i log L_i. [official code; its warm-up is 4 epochs, and the nadir is the mean over the next epoch;
      steps instead of epochs are a choice]

    Proved: max x <= value <= max x + mu log K (before the factor K); mu -> 0 gives the largest x_i alone, mu ->
    infinity gives all equal shares; once N is known, "log" does not depend on the units of the losses. Weights are
    positive.
    Not promised: descent of every task.

    Args:
        mu: width of the smoothing.
        form: "log" or "plain".
        preferences: p (K,), positive, only with "plain"; None: ones.
        ideal: z* (K,), only with "plain"; None: zeros.
        warmup_steps: steps before the nadir is measured, for "log".
        nadir_steps: steps over which it is averaged.

    Raises:
        LossError: a negative loss in form "log"; names the task.
        ConfigurationError: a vector whose length is not K, or one of them with form "log".
    """

    needs = Needs.LOSSES
    paper = "https://arxiv.org/abs/2402.19078"

    mu: float = number(1.0, low=0.0, open_low=True, log=True)
    form: str = choice("log", ("log", "plain"))
    preferences: tuple[float, ...] | None = vector(None, low=0.0, open_low=True)
    ideal: tuple[float, ...] | None = vector(None)
    warmup_steps: int = integer(0, low=0)
    nadir_steps: int = integer(1, low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("preferences", "ideal") if getattr(self, name) is not None]
        if self.form == "log" and given:
            raise ConfigurationError(f"stch: {given[0]} has no place in form='log', only in form='plain'.")

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """Preferences and ideal losses belong to tasks in their order; only logarithms forget units."""
        promised = {"conic-combination", "resume-equivalent", "one-backward-pass", "coefficient-identity"}
        if self.form == "log":
            promised.add("loss-unit-invariant")
        if self.form == "plain" and self.ideal is None:
            promised.add("preferences-belong-to-tasks")
        if self.form == "log" or (self.preferences is None and self.ideal is None):
            promised.add("permutation-equivariant")
        return frozenset(promised)

    def init(self, n_tasks: int) -> State:
        """Sum and count of the losses that make the nadir; nothing for "plain"."""
        for name in ("preferences", "ideal"):
            check_length("stch", name, getattr(self, name), n_tasks)
        if self.form == "plain":
            return {}
        return tensors({name: np.zeros(n_tasks) for name in ("nadir_sum", "nadir_count")})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Weights (K,)."""
        losses = losses_of(view)
        if self.form == "plain":
            preferences = self._vector(self.preferences, 1.0, view)
            x = preferences * (losses - self._vector(self.ideal, 0.0, view))
            return self._answer(preferences * softmax(x / self.mu), view, state, {"x": torch.from_numpy(x)})
        keep = positive(view, "stch takes its logarithm: shift the loss, or use form='plain'.")
        if keep is not None:
            return solve_part(view, keep, state, lambda part: self.aggregate(part, state))
        if view.step < self.warmup_steps:
            return self._answer(1.0 / losses, view, state, {"phase": "warm-up"})
        old = arrays(state)
        total, count = take(old["nadir_sum"], view), take(old["nadir_count"], view)
        measuring = view.step < self.warmup_steps + self.nadir_steps
        # A task that was absent while the nadir was measured gets its first loss after that.
        due = np.ones_like(count, dtype=bool) if measuring else count == 0
        total, count = np.where(due, total + losses, total), np.where(due, count + 1.0, count)
        new = tensors(
            {"nadir_sum": put(old["nadir_sum"], view, total), "nadir_count": put(old["nadir_count"], view, count)}
        )
        if measuring:
            return self._answer(1.0 / losses, view, new, {"phase": "nadir"})
        x = log_quotient(losses, total / count)
        weights = view.n_tasks * softmax(x / self.mu) / losses
        return self._answer(weights, view, new, {"phase": "smooth maximum", "x": torch.from_numpy(x)})

    def _answer(self, weights: Array, view: StepView, state: State, diagnostics: dict[str, Any]) -> Aggregation:
        return Aggregation(weights=torch.from_numpy(weights), state=state, diagnostics=diagnostics)

    def _vector(self, values: tuple[float, ...] | None, default: float, view: StepView) -> Array:
        return np.full(view.n_tasks, default) if values is None else take(np.array(values), view)
