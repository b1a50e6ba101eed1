"""``wpcgrad``: PCGrad in which a probability decides which gradients are not projected."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch

from mtlcore import choice, integer, number, vector
from mtlcore.contracts import Aggregation, Aggregator, Needs, State, StepView
from mtlplugins.aggregators import _numpy
from mtlplugins.arrays import Array, arrays, losses_of, put, take, tensors
from mtlplugins.per_task import check_length
from mtlplugins.positive import positive
from mtlplugins.solvers.certificate import EPS

LARGEST = 1e6
"""Ratios of losses beyond it are as large: the task is drawn first in any case."""


@dataclasses.dataclass(frozen=True)
class WPCGrad(Aggregator):
    """Bohn et al. 2024 (2409.01793) [paper: abstract]: a distribution p over tasks decides whose gradient is projected.

    The body of the paper could not be read; its text and its printed algorithm are said to differ [a reader's note].
    Both versions are here, with our completions [choice]:

    - "order": tasks are drawn one after the other, without replacement, with probabilities proportional to p. Each
      drawn task j protects its present g_j': of every task i drawn later with <g_i', g_j'> < 0 the component along g_j'
      is removed. The first gradient is never changed, and in the end <g_i', g_j'> >= 0 for all pairs.
    - "protect-one": one task s is drawn. PCGrad is applied to the other tasks, in random orders and with original
      gradients; at the end they are projected off g_s.

    d = sum_i g_i'. Without conflicts d is the plain sum for every p. Schemes for p:

    - "uniform", or "fixed": as given.
    - "loss": proportional to (L / L_1)^gamma, with L the mean loss of the last window, L_1 that of the first. The
      power is from a reader's note; the division is a [choice], because losses have different units.
    - "focal": proportional to -(1 - k)^gamma log k, as in dynamic task prioritization (Guo et al. 2018) [paper*], to
      which the paper relates one of its schemes [paper: abstract]. The performance k is the mean of exp(-loss) over the
      last window: for cross-entropies about the probability of the right answer. [choice]
    - "dwa": softmax(L / (T L_0)), with L_0 the mean loss of the window before the last, as in dynamic weight averaging
      (Liu et al. 2019). [choice]

    As long as a task has not had the windows that its scheme compares, the ratio (or, in "focal", p) is taken to be 1.
    [choice]

    Proved: for the task s drawn first, g_s' = g_s and <d, g_s> >= |g_s|^2; all coefficients are >= 0; for a given draw
    d is linear under positive scaling of the rows. Not promised: no conflict with the tasks drawn later, even for
    K = 2. Unlike in PCGrad, only one of two conflicting gradients is changed. Of absent tasks p is not used; the
    probabilities of the others are renormalised.
    Cost: the Gramian and O(K^3), K vectorised steps.

    Args:
        mode: the version: "order" or "protect-one".
        scheme: how p is made, as above.
        priorities: p up to a factor, one number > 0 per task, for "fixed".
        gamma: exponent for "loss" and "focal" [choice: 1].
        temperature: T for "dwa" [choice: 2, as in DWA].
        window: steps per window [choice]; an epoch in the paper.

    Raises:
        ConfigurationError: there is not one priority per task, or none for "fixed".
        LossError: a negative loss, with a scheme that reads losses.
    """

    needs = Needs.GRAMIAN
    paper: ClassVar[str] = "https://arxiv.org/abs/2409.01793"

    mode: str = choice("order", ("order", "protect-one"))
    scheme: str = choice("uniform", ("uniform", "fixed", "loss", "focal", "dwa"))
    priorities: tuple[float, ...] | None = vector(None, low=0.0, open_low=True)
    gamma: float = number(1.0, low=0.0)
    temperature: float = number(2.0, low=0.0, open_low=True)
    window: int = integer(100, low=1)

    @property
    def claims(self) -> frozenset[str]:  # type: ignore[override]
        """What is promised; given priorities treat tasks differently."""
        always = {
            "positively-homogeneous",
            "linear-under-scaling",
            "conic-combination",
            "no-conflict-identity",
            "resume-equivalent",
            "parameter-rotation",
        }
        return frozenset(always | ({"equivariant-in-distribution"} if self.scheme != "fixed" else set()))

    def init(self, n_tasks: int) -> State:
        """Of what is followed: sum and count in the current window, the mean over the last one, and over the one that
        it is compared with (0: none yet)."""
        check_length("wpcgrad", "priorities", self.priorities, n_tasks)
        if self.scheme == "fixed" and self.priorities is None:
            check_length("wpcgrad", "priorities", (), n_tasks)
        if self.scheme in ("uniform", "fixed"):
            return {}
        zeros = {name: np.zeros(n_tasks) for name in ("sum", "count", "reference", "last")}
        return tensors({**zeros, "window": np.array(0)})

    def aggregate(self, view: StepView, state: State) -> Aggregation:
        """Draw, then project."""
        logs, state = self._log_priorities(view, state)
        rows = _numpy.read(view)
        uniform = torch.rand(
            view.n_tasks, view.n_tasks + 1, generator=view.generator, dtype=torch.float64, device="cpu"
        )
        noise = rows.gather(uniform.numpy())
        live = np.arange(view.n_tasks) if rows.live is None else rows.live
        # Gumbel noise on log p, descending: draws without replacement in proportion to p (Plackett-Luce).
        order = np.argsort(-(rows.gather(logs) - np.log(-np.log(np.maximum(noise[:, -1], 1e-300)))))
        project = _in_order if self.mode == "order" else _one_protected
        basis, count = project(rows.matrix, order, noise[:, live])
        weights = rows.scatter((rows.norms @ basis) / rows.norms, dead=1.0)
        notes = {"protected": view.task_names[int(live[order[0]])] if len(order) else "", "projections": count}
        return Aggregation(weights=_numpy.tensor(weights), state=state, diagnostics=notes)

    def _log_priorities(self, view: StepView, state: State) -> tuple[Array, State]:
        """log p (K,) up to a constant, and the next state."""
        if self.scheme == "uniform":
            return np.zeros(view.n_tasks), state
        if self.scheme == "fixed":
            assert self.priorities is not None
            return take(np.log(np.array(self.priorities)), view), state
        positive(view, "wpcgrad follows it: shift the loss, or use scheme='uniform' or 'fixed'.")
        new = self._followed(view, arrays(state))
        return take(self._of_windows(new["last"], new["reference"]), view), tensors(new)

    def _followed(self, view: StepView, old: dict[str, Array]) -> dict[str, Array]:
        """The next state: at the first step of a window the one before it becomes the last one."""
        total, count, reference, last = old["sum"], old["count"], old["reference"], old["last"]
        number = view.step // self.window
        if number != old["window"]:
            met = count > 0.0
            before, last = last, np.divide(total, count, out=last.copy(), where=met)
            if self.scheme == "dwa":
                reference = np.where(met, before, reference)
            else:
                reference = np.where(met & (reference == 0.0), last, reference)
            total, count = np.zeros_like(total), np.zeros_like(count)
        value = losses_of(view)
        if self.scheme == "focal":
            value = np.maximum(np.exp(-value), 1e-300)
        total = put(total, view, take(total, view) + value)
        count = put(count, view, take(count, view) + 1.0)
        return {"sum": total, "count": count, "reference": reference, "last": last, "window": np.array(number)}

    def _of_windows(self, last: Array, reference: Array) -> Array:
        """log p (K,) up to a constant; a p of zero becomes the smallest number."""
        known = (last > 0.0) & (reference > 0.0)
        a, b = np.where(known, last, 1.0), np.where(known, reference, 1.0)
        if self.scheme == "loss":
            return np.nan_to_num(self.gamma * (np.log(a) - np.log(b)))
        if self.scheme == "dwa":
            with np.errstate(over="ignore"):
                return np.minimum(a / b, LARGEST) / self.temperature
        k = np.where(known, np.minimum(a, 1.0), np.exp(-1.0))
        p = (1.0 - k) ** self.gamma * -np.log(k)
        return np.asarray(np.where(known, np.log(np.maximum(p, 1e-300)), 0.0))


def _in_order(c: Array, order: Array, noise: Array) -> tuple[Array, int]:
    """Coefficients (k, k) of g_i' / |g_i| in the unit rows, and the number of projections."""
    k = len(c)
    basis, count = np.eye(k), 0
    for turn, j in enumerate(order[:-1]):
        later, protector = order[turn + 1 :], basis[j]
        gains = protector @ c
        square, size = float(protector @ gains), float(np.abs(protector).sum())
        if square <= 16.0 * k * EPS * size * size:
            continue  # nothing is left of it
        inner = basis[later] @ gains
        floor = 4.0 * EPS * k * size * np.abs(basis[later]).sum(axis=1)
        step = np.where(inner < -floor, -inner / square, 0.0)
        basis[later] += step[:, None] * protector
        count += int(np.count_nonzero(step))
    return basis, count


def _one_protected(c: Array, order: Array, noise: Array) -> tuple[Array, int]:
    """PCGrad of all tasks but the first of ``order``; at the end they are projected off its original gradient."""
    k = len(c)
    basis, count = np.eye(k), 0
    if not k:
        return basis, count
    task, s = np.arange(k), order[0]
    turns = [*noise.argsort(axis=1).T, np.full(k, s)]
    for turn, j in enumerate(turns):
        skip = (j == task) | (task == s) | ((j == s) & (turn < k))
        inner = (basis @ c)[task, j]
        step = np.where(skip | (inner >= -4.0 * EPS * k), 0.0, -inner)
        basis[task, j] += step
        count += int(np.count_nonzero(step))
    return basis, count
