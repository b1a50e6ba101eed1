"""The lower level's losses l~_i(l_i): as they are, rescaled by the first ones, or logarithmic.

- ``identical``: l~ = l.
- ``rescaled``: l~_i = l_i / c_i, c_i = l_i(0) / min_j l_j(0): every task starts at the smallest first loss. [code]
- ``log``: l~_i = log(l_i / l_i_ref). The reference is the first loss, or the first of every period of
  ``log_reference_every`` steps: the published code takes it anew from the first batch of every epoch. [code]

References are state: (K,) losses, and (K,) int64 periods in which they were taken (-1: not yet).
"""

from __future__ import annotations

import numpy as np

from mtlcore.contracts import StepView
from mtlplugins.arrays import Array, Arrays, put, take
from mtlplugins.positive import positive

KINDS = ("identical", "rescaled", "log")


def fresh(kind: str, n_tasks: int) -> Arrays:
    """State before the first step; empty for ``identical``."""
    if kind == "identical":
        return {}
    return {"reference": np.ones(n_tasks), "reference_period": np.full(n_tasks, -1, dtype=np.int64)}


def usable(kind: str, view: StepView, losses: Array, state: Arrays) -> Array | None:
    """None if all losses of this step can be normalised, else (K,) bool: which can (see mtlplugins.positive)."""
    if kind == "identical":
        return None
    way_out = f"normalisation={kind!r} needs positive ones: use normalisation='identical', or shift the loss."
    if kind == "log":
        return positive(view, losses, way_out)
    new = take(state["reference_period"], view) < 0
    return positive(view, losses, way_out, checked=new) if new.any() else None


def updated(kind: str, every: int | None, view: StepView, losses: Array, state: Arrays) -> Arrays:
    """References of this step, taken anew where a task starts its run or its period; else ``state`` itself."""
    if kind == "identical":
        return state
    period = view.step // every if kind == "log" and every is not None else 0
    reference, taken = state["reference"], state["reference_period"]
    due = take(taken, view) != period
    if not due.any():
        return state
    return {
        "reference": put(reference, view, np.where(due, losses, take(reference, view))),
        "reference_period": put(taken, view, np.full(view.n_tasks, period)),
    }


def normalise(kind: str, view: StepView, losses: Array, references: Arrays) -> tuple[Array, Array]:
    """Normalised losses l~ and their derivatives dl~/dl, both (K,)."""
    if kind == "identical":
        return losses, np.ones_like(losses)
    reference = take(references["reference"], view)
    if kind == "log":
        return np.log(losses / reference), 1.0 / losses
    known = references["reference"]
    unseen = references["reference_period"] < 0
    smallest = (known[~unseen] if unseen.any() else known).min()
    # In this order tasks at their reference are equal to the last bit; otherwise rounding would decide, in the very
    # first step, who is pulled where.
    return (losses / reference) * smallest, smallest / reference
